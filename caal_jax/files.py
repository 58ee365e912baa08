"""Files that appear whole or not at all, a lock, and names that stay inside their folder."""

import contextlib
import fcntl
import os
import re
import socket
import sys
from pathlib import Path

from caal_jax.errors import InputError


def folder(path):
    """The folder as a `Path`, made if it is not there."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_bytes(path, data):
    """Replaces a file in one step; a reader sees the old one or the new one. Returns the path.

    That holds through a crash of the machine too.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_text(path, text):
    return write_bytes(path, text.encode())


def printable(name):
    """A file name as text that any stream can write: bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def append(path, text, *, at):
    """Writes text at a place of a file and cuts off what came after; it is on the disk then."""
    with Path(path).open("r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path):
    """The lines of a file, without a last one that a crash cut short; none without the file."""
    path = Path(path)
    return path.read_text(errors="replace").split("\n")[:-1] if path.is_file() else []


@contextlib.contextmanager
def lock(path):
    """Holds a folder, made if need be, against other processes; a crash of ours frees it.

    Whoever holds it removes partial files that a killed process left there.
    Raises: InputError if another process holds it.
    """
    path = folder(path)
    with (path / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                path,
                found=f"another process at work there ({file.read().strip() or 'unknown'})",
                expected="a workdir that nobody else writes to",
                remedy="Wait for it or stop it, or pass another --workdir.",
            ) from error
        except OSError as error:
            print(f"warning: {path} cannot be locked ({error})", file=sys.stderr, flush=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for partial in path.rglob(".*.partial"):
            # Folders below with a lock of their own may be in use.
            if not any((at / ".lock").exists() for at in partial.parents if path in at.parents):
                partial.unlink(missing_ok=True)
        yield


def safe_name(name):
    """A file name for a case: letters, digits, dot, dash and underscore, at most 100 long."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[:100] or "case"


def distinct_names(names):
    """`safe_name` of each; those that would meet, even without regard to case, get a number."""
    found, taken = [], set()
    for stem in map(safe_name, names):
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.lower())
        found.append(name)
    return found
