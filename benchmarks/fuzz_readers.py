"""Coverage-guided attack on the readers: whatever the bytes, a case or an InputError.

pip install atheris; PYTHONPATH=. python benchmarks/fuzz_readers.py -max_total_time=60

Options are libFuzzer's. Starts from small valid files of every format, the tables and a reading in
XML; the first byte of an input picks the format, so that one corpus serves them all. Stops at the
first exception that is no InputError, at an image that breaks the readers' promises, and at 2 GB of
memory.
"""

import contextlib
import gzip
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["caal_jax.data", "pydicom.filereader", "pydicom.dataset", "nibabel.nifti1", "PIL"]
):
    import numpy as np

    from caal_jax.data.public.jsrt import read_nodules
    from caal_jax.data.public.lidc import read_outlines
    from caal_jax.data.public.tables import read_table
    from caal_jax.data.readers import read_image
    from caal_jax.data.split import read_split
    from caal_jax.data.table import table
    from caal_jax.errors import InputError
    from tests.data.test_fuzz import make

SUFFIXES = ("png", "jpg", "tif", "nii", "nii.gz", "mha", "nrrd", "dcm")
TABLE = b"file,split,patient,kind,mask\na.png,train,p,,\na.nii,test,q,dent,a.mha\n"
NODULES = b"JPCLN001.IMG\t5\t15\t53\tMale\t1634\t692\tmalignant\tlung cancer\r"
READING = b"""<?xml version="1.0"?><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>
<SeriesInstanceUid>1.2</SeriesInstanceUid></ResponseHeader><readingSession><unblindedReadNodule>
<roi><imageZposition>-9.5</imageZposition><imageSOP_UID>1.3</imageSOP_UID><inclusion>TRUE</inclusion>
<edgeMap><xCoord>3</xCoord><yCoord>4</yCoord></edgeMap></roi></unblindedReadNodule></readingSession>
</LidcReadMessage>"""


def _read_tables(path):
    for read in (lambda p: read_split(p, ("file", "use")), lambda p: read_table(p, ("file",))):
        with contextlib.suppress(InputError):
            read(path)
    table(path)


# Small valid texts, and what reads them.
TEXTS = ((TABLE, _read_tables), (NODULES, read_nodules), (READING, read_outlines))


def main():
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        corpus = home / "corpus"
        corpus.mkdir()
        for number, suffix in enumerate(SUFFIXES):
            whole = make(home / f"a.{suffix}")
            plain = gzip.decompress(whole) if suffix == "nii.gz" else whole
            (corpus / suffix).write_bytes(bytes([number]) + plain)
        for number, (whole, _) in enumerate(TEXTS, start=len(SUFFIXES)):
            (corpus / str(number)).write_bytes(bytes([number]) + whole)
        counts = dict.fromkeys(("attempts", "read"), 0)

        def attack(data):
            kind = data[0] % (len(SUFFIXES) + len(TEXTS)) if data else 0
            counts["attempts"] += 1
            with contextlib.suppress(InputError):
                _read(home, kind, data[1:])
                counts["read"] += 1
            if counts["attempts"] % 10_000 == 0:
                print(counts, flush=True)

        atheris.Setup([*sys.argv, str(corpus), "-rss_limit_mb=2048", "-max_len=4096"], attack)
        atheris.Fuzz()


def _read(home, kind, data):
    if kind >= len(SUFFIXES):
        path = home / "text"
        path.write_bytes(data)
        TEXTS[kind - len(SUFFIXES)][1](path)
        return
    path = home / f"b.{SUFFIXES[kind]}"
    path.write_bytes(gzip.compress(data, 0) if SUFFIXES[kind] == "nii.gz" else data)
    case = read_image(path, max_bytes=2**20)
    if not np.isfinite(case.image).all() or not min(case.geometry.spacing_mm) > 0:
        raise AssertionError(f"{path.name}: values or spacing that no case may have")


if __name__ == "__main__":
    os.environ.setdefault("TMPDIR", "/dev/shm")
    main()
