"""Damaged and hostile files: whatever the bytes, a case comes out or an `InputError`."""

import contextlib
import gzip
import struct

import cv2
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from caal_jax.data.readers import file_entry, image_files, read_image
from caal_jax.errors import InputError

GREY = np.random.default_rng(0).integers(0, 4096, (12, 10)).astype(np.uint16)
VOLUME = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
METAIMAGE = b"""ObjectType = Image
NDims = 3
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 5 6 7
ElementSpacing = 1 2 3
DimSize = 4 5 6
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
NRRD = b"""NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 5 6
space directions: (0,1,0) (2,0,0) (0,0,-3)
endian: little
encoding: gzip
space origin: (5,6,7)

"""


def dicom(path):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.Dataset()
    data.file_meta = meta
    data.Rows, data.Columns = GREY.shape
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 16, 12, 11
    data.PixelRepresentation = 0
    data.PhotometricInterpretation = "MONOCHROME1"
    data.RescaleSlope, data.RescaleIntercept = "2", "-1024"
    data.PixelSpacing = [0.5, 0.25]
    data.PixelData = GREY.tobytes()
    data.save_as(path, enforce_file_format=True)


def make(path):
    """A small valid file of the format that the name says; returns its bytes."""
    suffix = path.name.partition(".")[2]
    if suffix == "png":
        Image.fromarray(GREY).save(path)
    elif suffix == "jpg":
        Image.fromarray(GREY.astype(np.uint8)).save(path)
    elif suffix == "tif":
        cv2.imwrite(str(path), GREY)
    elif suffix in ("nii", "nii.gz"):
        nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), path)
    elif suffix == "mha":
        path.write_bytes(METAIMAGE + VOLUME.tobytes("F"))
    elif suffix == "nrrd":
        path.write_bytes(NRRD + gzip.compress(VOLUME.tobytes("F")))
    else:
        dicom(path)
    return path.read_bytes()


# Bytes that mean something to a header, besides any others.
TELLING = st.sampled_from(
    [b"", b"\0", b"\xff", b"-", b"9999999999", b"nan", b"1e999", b"\n", b" ", b"=", b":", b"none"]
    + [struct.pack(form, value) for form in ("<i", ">i", "<h") for value in (-1, 0, 2**15 - 1)]
    + [struct.pack("<f", value) for value in (float("nan"), float("inf"), -1.0)]
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 6), TELLING | st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)


def damaged(whole, edits, length, header):
    """The bytes with some replaced: (place as a share of the header, how many, by what)."""
    data = bytearray(whole)
    for place, count, new in edits:
        at = int(place * min(header, len(data)))
        data[at : at + count] = new
    return bytes(data[: int(length * len(data)) + 1])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "nii", "nii.gz", "mha", "nrrd", "dcm"])
def test_damaged_files_raise_nothing_else(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    whole = make(path)
    assert read_image(path).image.size
    plain = gzip.decompress(whole) if suffix == "nii.gz" else whole
    good = []

    @settings(max_examples=80, deadline=None, database=None, derandomize=True)
    @given(edits=EDITS, length=st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.3]))
    def attack(edits, length):
        data = damaged(plain, edits, length, header=600)
        path.write_bytes(gzip.compress(data, 1) if suffix == "nii.gz" else data)
        with contextlib.suppress(InputError):
            case = read_image(path, max_bytes=2**20)
            good.append(case)
            assert case.image.ndim in (3, 4)
            assert case.image.dtype in (np.uint8, np.uint16, np.int16, np.float32)
            assert np.isfinite(case.image).all()
            assert case.image.nbytes <= 2**22
            assert np.isfinite(case.geometry.spacing_mm).all()
            assert min(case.geometry.spacing_mm) > 0
            assert len(case.geometry.spacing_mm) == case.image.ndim - 1

    attack()
    # Had every attempt been refused at the door, nothing behind it would have been tried.
    assert good


def test_folders_that_lie(tmp_path):
    (tmp_path / "a.png").symlink_to("a.png")
    (tmp_path / "b").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to("d")
    (tmp_path / "d").symlink_to("c")
    assert image_files(tmp_path) == []
    for name in ("a.png", "c"):
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name)


def test_names_that_are_no_text(tmp_path):
    path = tmp_path / "caf\udce9.png"
    Image.fromarray(GREY).save(path)
    assert image_files(tmp_path) == [path]
    assert read_image(path).case_id == r"caf\xe9"
    entry = file_entry(path, case_id="x", patient="")
    path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"caf\\udce9\.png: found broken data") as raised:
        entry.load()
    str(raised.value).encode()  # what printing does


def test_files_and_folders_that_cannot_be_opened(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(GREY).save(path)

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.png: found broken data \(PermissionError"):
        read_image(path)
    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(InputError, match="a folder that cannot be opened"):
        image_files(tmp_path)
