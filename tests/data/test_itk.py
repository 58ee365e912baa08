"""MetaImage and NRRD against ITK's own writer, and headers that lie."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.data.readers import read_image
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(-900, 900, (5, 7, 6)).astype(np.int16)  # (x, y, z)
SPACING = (0.5, 2.0, 3.0)
# Columns are the directions of x, y and z in patient axes; not symmetric, so not its own transpose.
DIRECTION = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])
ORIGIN = (10.0, -20.0, 30.5)
METAIMAGE = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
DimSize = 2 3 4
ElementType = MET_UCHAR
ElementDataFile = LOCAL
"""
NRRD = """NRRD0004
# a comment
type: uint8
dimension: 3
sizes: 2 3 4
encoding: raw

"""


def itk_image(array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SWIG's, on Python 3.12 and later
        sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(SPACING[: array.ndim])
    if array.ndim == 3:
        image.SetOrigin(ORIGIN)
        image.SetDirection(DIRECTION.ravel())
    return sitk, image


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd", "nhdr"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4", "i4", "f8"])
def test_volumes_that_itk_wrote(tmp_path, suffix, dtype, compressed):
    sitk, image = itk_image(VOLUME.astype(dtype))
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image, str(path), compressed)
    case = read_image(path, slice_axis=1)
    want = np.moveaxis(VOLUME.astype(dtype), 1, 0)
    assert case.image.dtype == (dtype if dtype in ("u1", "i2", "u2") else "f4")
    assert_array_equal(case.image[..., 0], want)
    assert case.geometry.spacing_mm == (2.0, 0.5, 3.0)
    for index in [(0, 0, 0), (4, 0, 0), (0, 6, 0), (1, 2, 3)]:
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        assert_allclose((case.geometry.affine @ [*index, 1])[:3], [-x, -y, z], atol=1e-9)


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_pictures_have_rows_first(tmp_path, suffix):
    sitk, image = itk_image(VOLUME[..., 0])
    sitk.WriteImage(image, str(tmp_path / f"a.{suffix}"))
    case = read_image(tmp_path / f"a.{suffix}")
    assert_array_equal(case.image[..., 0], VOLUME[..., 0].T)
    assert case.geometry.spacing_mm == (2.0, 0.5)
    assert case.geometry.affine is None


def test_other_spellings(tmp_path):
    values = np.arange(24, dtype=np.uint16).reshape(2, 3, 4, order="F")
    text = METAIMAGE.replace("MET_UCHAR", "MET_USHORT").replace("MSB = False", "MSB = True")
    data = values.astype(">u2").tobytes(order="F")
    (tmp_path / "a.mha").write_bytes(text.encode() + data)
    assert_array_equal(read_image(tmp_path / "a.mha").image[..., 0], np.moveaxis(values, 2, 0))
    text = NRRD.replace("uint8", "unsigned short").replace(
        "encoding",
        "endian: big\nspace: right-anterior-superior\n"
        "space directions: (2, 0, 0) (0,3,0) (0,0,4)\nspace origin: (1,2,3)\nencoding",
    )
    (tmp_path / "a.nrrd").write_bytes(text.encode() + data)
    case = read_image(tmp_path / "a.nrrd")
    assert_array_equal(case.image[..., 0], np.moveaxis(values, 2, 0))
    assert_array_equal(case.geometry.affine[:3], [[2, 0, 0, 1], [0, 3, 0, 2], [0, 0, 4, 3]])
    # One slice is a picture.
    text = METAIMAGE.replace("2 3 4", "2 3 1")
    (tmp_path / "a.mha").write_bytes(text.encode() + bytes(range(6)))
    assert_array_equal(read_image(tmp_path / "a.mha").image[..., 0], [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("a.mha", "2 3 4", "2000 3000 4000", "an image of 24000000000 bytes"),
        ("a.mha", "2 3 4", "2 3 5", "24 bytes where its header declares 30"),
        ("a.mha", "2 3 4", "2 -3 4", "declares the size 2 x -3 x 4"),
        ("a.mha", "2 3 4", "2 3", "2 sizes for 3 dimensions"),
        ("a.mha", "NDims = 3", "NDims = 900000000", "900000000 dimensions"),
        ("a.mha", "MET_UCHAR", "MET_UCHAR_ARRAY", "ElementType MET_UCHAR_ARRAY"),
        ("a.mha", "DimSize", "ElementNumberOfChannels = 3\nDimSize", "Channels 3"),
        ("a.mha", "LOCAL", "../b.raw", r"voxels in '\.\./b\.raw'"),
        ("a.mha", "LOCAL", "b.raw", r"voxels in 'b\.raw'"),
        ("a.mha", "ElementDataFile = LOCAL\n", "", "a header without an end"),
        ("a.mha", "DimSize", "Comment = x\n" * 9999 + "DimSize", "a header without an end"),
        ("a.mha", "DimSize", "ElementSpacing = 1 2\nDimSize", "2 numbers where 3 belong"),
        ("a.nrrd", "2 3 4", "2000 3000 4000", "an image of 24000000000 bytes"),
        ("a.nrrd", "2 3 4", "2 3 5", "24 bytes where its header declares 30"),
        ("a.nrrd", "encoding: raw", "encoding: gzip", "broken data"),
        ("a.nrrd", "encoding: raw", "encoding: bzip2", "encoding bzip2"),
        ("a.nrrd", "uint8", "block", "type block"),
        ("a.nrrd", "NRRD0004", "PNG", "no NRRD header"),
        ("a.nrrd", "sizes", "byte skip: 7\nsizes", "byte skip 7"),
        (
            "a.nrrd",
            "sizes",
            "space: LPS\nspace directions: none (1,0,0) (0,1,0)\nsizes",
            "without a direction",
        ),
    ],
)
def test_headers_that_lie(tmp_path, name, old, new, found):
    text = METAIMAGE if name == "a.mha" else NRRD
    path = tmp_path / "inner" / name
    path.parent.mkdir()
    (tmp_path / "b.raw").write_bytes(bytes(24))  # outside the folder of the header
    path.write_bytes(text.encode() + bytes(range(24)))
    read_image(path)
    path.write_bytes(text.replace(old, new).encode() + bytes(range(24)))
    with pytest.raises(InputError, match=found):
        read_image(path)


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_compressed_voxels_of_another_size(tmp_path, suffix):
    sitk, image = itk_image(VOLUME)
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image, str(path), True)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"5 7 6", b"5 7 5"))
    with pytest.raises(InputError, match="350 or more bytes where its header declares 350"):
        read_image(path)
    path.write_bytes(whole.replace(b"5 7 6", b"5 7 7"))
    with pytest.raises(InputError, match="420 bytes where its header declares 490"):
        read_image(path)
    for length in range(len(whole) - 1, len(whole) - 60, -1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_image(path)
