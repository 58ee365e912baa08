"""Coverage-guided attack on the readers: whatever the bytes, a case or an InputError.

pip install atheris; PYTHONPATH=. python benchmarks/fuzz_readers.py -max_total_time=60

Options are libFuzzer's. Starts from small valid files of every format and the two tables; the first
byte of an input picks the format, so that one corpus serves them all. Stops at the first exception
that is no InputError, at an image that breaks the readers' promises, and at 2 GB of memory.
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

    from caal_jax.data.readers import read_image
    from caal_jax.data.split import read_split
    from caal_jax.data.table import table
    from caal_jax.errors import InputError
    from tests.data.test_fuzz import make

SUFFIXES = ("png", "jpg", "tif", "nii", "nii.gz", "mha", "nrrd", "dcm")
TABLE = b"file,split,patient,kind,mask\na.png,train,p,,\na.nii,test,q,dent,a.mha\n"


def main():
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        corpus = home / "corpus"
        corpus.mkdir()
        for number, suffix in enumerate(SUFFIXES):
            whole = make(home / f"a.{suffix}")
            plain = gzip.decompress(whole) if suffix == "nii.gz" else whole
            (corpus / suffix).write_bytes(bytes([number]) + plain)
        (corpus / "csv").write_bytes(bytes([len(SUFFIXES)]) + TABLE)
        counts = dict.fromkeys(("attempts", "read"), 0)

        def attack(data):
            kind = data[0] % (len(SUFFIXES) + 1) if data else 0
            counts["attempts"] += 1
            with contextlib.suppress(InputError):
                _read(home, kind, data[1:])
                counts["read"] += 1
            if counts["attempts"] % 10_000 == 0:
                print(counts, flush=True)

        atheris.Setup([*sys.argv, str(corpus), "-rss_limit_mb=2048", "-max_len=4096"], attack)
        atheris.Fuzz()


def _read(home, kind, data):
    if kind == len(SUFFIXES):
        path = home / "cases.csv"
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            read_split(path, ("file", "use"))
        table(path)
        return
    path = home / f"b.{SUFFIXES[kind]}"
    path.write_bytes(gzip.compress(data, 0) if SUFFIXES[kind] == "nii.gz" else data)
    case = read_image(path, max_bytes=2**20)
    if not np.isfinite(case.image).all() or not min(case.geometry.spacing_mm) > 0:
        raise AssertionError(f"{path.name}: values or spacing that no case may have")


if __name__ == "__main__":
    os.environ.setdefault("TMPDIR", "/dev/shm")
    main()
