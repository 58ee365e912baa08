"""Downloaded archives, unpacked into a folder that they cannot leave."""

import errno
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from caal_jax.errors import InputError

# Names that no file can have beside the others, and broken bzip2, which has no number.
IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, None)
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
# RuntimeError: encrypted, or packed in a way that the library does not know. ValueError and
# OverflowError: sizes that no file can have.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)


def is_archive(path):
    """Whether `path` is a file with an archive's name."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def listing(path):
    """(name, bytes) of every file in an archive. Raises: InputError if it is damaged."""
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                return [(m.filename, m.file_size) for m in archive.infolist() if not m.is_dir()]
        with tarfile.open(path) as archive:
            return [(m.name, m.size) for m in archive.getmembers() if m.isfile()]
    except (*DAMAGE, OSError) as error:
        raise _damaged(path, error) from error


def unpack(path, folder):
    """Unpacks a zip or tar file into `folder`, unless that was done before; returns the folder.

    Raises: InputError for a damaged archive, one larger than the free space, and one with links,
    devices or names that lead out of the folder. Nothing is left behind then.
    """
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"incomplete.{os.getpid()}{folder.name}")
    partial.mkdir(parents=True)
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                _check(path, partial, [(m.filename, m.file_size) for m in members])
                archive.extractall(partial)
        else:
            with tarfile.open(path) as archive:
                members = archive.getmembers()
                odd = next((m.name for m in members if not (m.isfile() or m.isdir())), None)
                if odd:
                    raise _refused(path, f"{odd}, which is neither a file nor a folder")
                _check(path, partial, [(m.name, m.size) for m in members])
                archive.extractall(partial, filter="data")
                # Packed streams compare their checksums at their end only.
                while archive.fileobj.read(2**20):
                    pass
        os.replace(partial, folder)
    except InputError:
        raise
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in IMPOSSIBLE:
            raise
        raise _damaged(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check(path, folder, members):
    inside = folder.resolve()
    for name, size in members:
        if size < 0:
            raise _refused(path, f"the member {name} of {size} bytes")
        if Path(name).is_absolute() or not (folder / name).resolve().is_relative_to(inside):
            raise _refused(path, f"the member {name}, which leads out of the folder")
    needed, free = sum(size for _, size in members), shutil.disk_usage(folder).free
    if needed > free:
        raise _refused(path, f"{needed} bytes once unpacked, with {free} bytes free")


def _damaged(path, error):
    reason = str(error).partition("\n")[0]
    return _refused(path, f"a damaged archive ({reason})")


def _refused(path, found):
    return InputError(
        path,
        found=found,
        expected="the published archive",
        remedy="Download it again, or unpack it yourself and pass the folder.",
    )
