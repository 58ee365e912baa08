"""Readers: native types, geometry, and every way a file can be broken."""

import contextlib
import gzip
import struct
import zlib

import cv2
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from caal_jax.data.readers import (
    file_entry,
    image_files,
    natural_key,
    read_image,
    read_mask,
    stem_of,
)
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
GREY8 = cv2.GaussianBlur(RNG.integers(0, 256, (40, 33), np.uint8), (5, 5), 0)
GREY16 = RNG.integers(0, 65536, (40, 33), np.uint16)
RGB8 = RNG.integers(0, 256, (40, 33, 3), np.uint8)
RGB16 = RNG.integers(0, 65536, (40, 33, 3), np.uint16)
FLOATS = RNG.random((40, 33), np.float32)
VOLUME = RNG.integers(-900, 900, (6, 7, 5)).astype(np.int16)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 0, 3, -5], [0, -0.5, 0, 7], [0, 0, 0, 1]])


def save_pil(path, array, **options):
    Image.fromarray(array).save(path, **options)


def save_bgr(path, array):
    cv2.imwrite(str(path), array[..., ::-1])


def save_cv(path, array):
    cv2.imwrite(str(path), array)


def save_nifti(path, array, affine=AFFINE, kind=nib.Nifti1Image):
    nib.save(kind(array, affine), path)


@pytest.mark.parametrize(
    ("name", "save", "array"),
    [
        ("a.png", save_pil, GREY8),
        ("a.PNG", save_pil, RGB8),
        ("a.png", save_cv, GREY16),
        ("a.png", save_bgr, RGB16),
        ("a.tif", save_pil, GREY8),
        ("a.tiff", save_pil, RGB8),
        ("a.tif", save_cv, GREY16),
        ("a.tif", save_bgr, RGB16),
        ("a.tif", save_cv, FLOATS),
        ("a.tif", save_cv, GREY16.view(np.int16)),
        ("a.nii", save_nifti, GREY16),
        ("a.nii.gz", save_nifti, FLOATS),
        ("a.nii.gz", save_nifti, GREY8[..., None]),
    ],
)
def test_lossless_formats_keep_values_and_type(tmp_path, name, save, array):
    save(tmp_path / name, array)
    case = read_image(tmp_path / name)
    want = array if array.ndim == 3 else array[..., None]
    assert case.image.dtype == array.dtype
    assert_array_equal(case.image, want)
    assert case.case_id == "a"
    assert case.geometry.path == tmp_path / name


def test_jpeg_is_close(tmp_path):
    save_pil(tmp_path / "a.jpg", GREY8, quality=95)
    assert_allclose(read_image(tmp_path / "a.jpg").image[..., 0], GREY8.astype(int), atol=8)


def test_alpha_palette_one_bit_and_grey_coded_colour(tmp_path):
    alpha = np.dstack([RGB8, GREY8])
    save_pil(tmp_path / "rgba.png", alpha)
    assert_array_equal(read_image(tmp_path / "rgba.png").image, RGB8)
    save_pil(tmp_path / "la.png", np.dstack([GREY8, GREY8 // 2]))
    assert_array_equal(read_image(tmp_path / "la.png").image, GREY8[..., None])
    save_cv(tmp_path / "rgba16.png", np.dstack([RGB16[..., ::-1], GREY16]))
    assert_array_equal(read_image(tmp_path / "rgba16.png").image, RGB16)
    palette = Image.fromarray(GREY8 // 128)
    palette = palette.convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "palette.png")
    colours = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)
    assert_array_equal(read_image(tmp_path / "palette.png").image, colours[GREY8 // 128])
    save_pil(tmp_path / "bit.png", GREY8 > 128)
    assert_array_equal(read_image(tmp_path / "bit.png").image[..., 0], (GREY8 > 128) * 255)
    save_pil(tmp_path / "coded.png", np.dstack([GREY8] * 3))
    assert_array_equal(read_image(tmp_path / "coded.png").image, GREY8[..., None])


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    ("axis", "spacing"), [(0, (2.0, 0.5, 3.0)), (1, (0.5, 2.0, 3.0)), (2, (3.0, 2.0, 0.5))]
)
def test_volume_puts_its_slice_axis_first(tmp_path, kind, axis, spacing):
    save_nifti(tmp_path / "a.nii.gz", VOLUME, kind=kind)
    case = read_image(tmp_path / "a.nii.gz", slice_axis=axis)
    assert case.is_volume
    assert case.image.dtype == np.int16
    for index in range(VOLUME.shape[axis]):
        assert_array_equal(case.image[index, ..., 0], VOLUME.take(index, axis))
    assert_allclose(case.geometry.spacing_mm, spacing, rtol=1e-6)
    assert_allclose(case.geometry.affine, AFFINE)
    assert case.geometry.slice_axis == axis


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (VOLUME.astype(np.float64), np.float32),
        (VOLUME.astype(np.int32), np.float32),
        (VOLUME.astype(">i2"), np.int16),
        (VOLUME.astype(">f4"), np.float32),
        ((VOLUME // 8).astype(np.int8), np.int16),
    ],
)
def test_other_nifti_types_become_one_of_four(tmp_path, array, dtype):
    save_nifti(tmp_path / "a.nii", array)
    image = read_image(tmp_path / "a.nii", slice_axis=0).image
    assert image.dtype == np.dtype(dtype)
    assert image.dtype.isnative
    assert_array_equal(image[..., 0], array)


def test_nifti_slope_gives_float(tmp_path):
    nifti = nib.Nifti1Image(VOLUME, AFFINE)
    nifti.header.set_slope_inter(0.5, -3)
    nib.save(nifti, tmp_path / "a.nii.gz")
    stored = nib.load(tmp_path / "a.nii.gz")
    image = read_image(tmp_path / "a.nii.gz", slice_axis=0).image
    assert image.dtype == np.float32
    assert_allclose(image[..., 0], stored.get_fdata(), rtol=1e-6)
    assert stored.dataobj.slope == 0.5


def test_four_dimensions_are_refused_unless_the_last_is_one(tmp_path):
    save_nifti(tmp_path / "one.nii.gz", VOLUME[..., None])
    assert read_image(tmp_path / "one.nii.gz").image.shape == (5, 6, 7, 1)
    save_nifti(tmp_path / "four.nii.gz", np.stack([VOLUME] * 2, axis=-1))
    with pytest.raises(InputError, match=r"four\.nii\.gz: found 4 dimensions, 6 x 7 x 5 x 2"):
        read_image(tmp_path / "four.nii.gz")


@pytest.mark.parametrize(
    ("name", "save", "array"),
    [
        ("a.png", save_pil, GREY8),
        ("a.png", save_bgr, RGB16),
        ("a.jpg", save_pil, GREY8),
        ("raw.tif", save_pil, GREY8),
        ("lzw.tif", save_bgr, RGB16),
        ("a.nii", save_nifti, VOLUME),
        ("a.nii.gz", save_nifti, VOLUME),
    ],
)
def test_truncated_files_never_give_half_an_image(tmp_path, name, save, array, capfd):
    path = tmp_path / name
    save(path, array)
    whole, want = path.read_bytes(), read_image(path).image
    num_good = 0
    for length in range(0, len(whole), 1 + len(whole) // 150):
        path.write_bytes(whole[:length])
        # An InputError is right; other errors, and other pixels, are not.
        with contextlib.suppress(InputError):
            assert_array_equal(read_image(path).image, want)
            # Only an end marker or trailing metadata may be missing without harm.
            num_good += length < len(whole) - 400
    assert num_good == 0


def test_short_nifti_tells_both_sizes(tmp_path):
    path = tmp_path / "a.nii"
    save_nifti(path, VOLUME)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="found 752 bytes where its header declares 772"):
        read_image(path)


def test_damaged_gzip_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "a.nii.gz"
    plain = nib.Nifti1Image(VOLUME, AFFINE).to_bytes()
    data = bytearray(gzip.compress(plain, 0))
    data[len(data) // 2] ^= 1  # stored blocks decode without complaint
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"broken data \(BadGzipFile"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.nii", "a.nii.gz", "a.dcm"])
def test_files_that_are_not_images(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match="no such file"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="an empty file"):
        read_image(path)
    path.write_text("<html>404 not found</html>" * 40)
    with pytest.raises(InputError, match=name):
        read_image(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="a folder"):
        read_image(path)


def test_unknown_suffix_and_pages(tmp_path):
    with pytest.raises(InputError, match=r"'\.bmp'.*\.nii\.gz"):
        read_image(tmp_path / "a.bmp")
    pages = [Image.fromarray(GREY8)] * 3
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="3 pages"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_counted(tmp_path, value):
    broken = VOLUME.astype(np.float32)
    broken[0, 0, :2] = value
    save_nifti(tmp_path / "a.nii.gz", broken)
    with pytest.raises(InputError, match=r"a\.nii\.gz: found 2 of 210 values NaN or infinite"):
        read_image(tmp_path / "a.nii.gz")


def test_values_beyond_float32_are_not_silently_infinite(tmp_path):
    save_nifti(tmp_path / "a.nii", np.full((3, 3, 3), 1e300))
    with pytest.raises(InputError, match="27 of 27"):
        read_image(tmp_path / "a.nii")


def test_complex_values_are_refused(tmp_path):
    save_nifti(tmp_path / "a.nii", VOLUME.astype(np.complex64))
    with pytest.raises(InputError, match="complex64"):
        read_image(tmp_path / "a.nii")


def png_of_declared_size(width, height):
    def chunk(name, data):
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_declared_sizes_are_checked_before_allocation(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_of_declared_size(60000, 60000))
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")
    (tmp_path / "a.png").write_bytes(png_of_declared_size(3000, 2000))
    with pytest.raises(InputError, match="an image of 18000000 bytes; expected at most 10000000"):
        read_image(tmp_path / "a.png", max_bytes=10_000_000)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((30000, 30000, 30000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(2000)))
    with pytest.raises(InputError, match="an image of 108000000000352 bytes"):
        read_image(tmp_path / "a.nii.gz")


def test_mask_thresholds(tmp_path):
    labels = np.zeros((40, 33), np.uint8)
    labels[3:9, 4:8], labels[20:30, 4:8] = 1, 255
    save_pil(tmp_path / "m.png", labels)
    assert_array_equal(read_mask(tmp_path / "m.png", (40, 33)), labels > 0)
    one_channel = np.dstack([labels * 0, labels, labels * 0])
    save_pil(tmp_path / "rgb.png", one_channel)
    assert_array_equal(read_mask(tmp_path / "rgb.png", (40, 33)), labels > 0)
    # Compression leaves low values around the lesion.
    save_pil(tmp_path / "m.jpg", np.where(labels == 255, 255, 0).astype(np.uint8), quality=30)
    assert (read_image(tmp_path / "m.jpg").image[..., 0] > 0).sum() > 40
    assert_array_equal(read_mask(tmp_path / "m.jpg", (40, 33)), labels == 255)


def test_mask_of_another_size(tmp_path):
    save_pil(tmp_path / "m.png", GREY8)
    with pytest.raises(InputError, match=r"m\.png: found a mask of 40 x 33.*33 x 40"):
        read_mask(tmp_path / "m.png", (33, 40))


def test_volume_mask_follows_the_slice_axis(tmp_path):
    save_nifti(tmp_path / "m.nii.gz", (VOLUME > 0).astype(np.uint8))
    mask = read_mask(tmp_path / "m.nii.gz", (7, 6, 5), slice_axis=1)
    assert_array_equal(mask, np.moveaxis(VOLUME > 0, 1, 0))


def test_entry_joins_masks_and_picks_channels(tmp_path):
    save_pil(tmp_path / "a.png", RGB8)
    first, second = np.zeros((2, 40, 33), bool)
    first[:5], second[4:9] = True, True
    save_pil(tmp_path / "a_mask.png", first)
    save_pil(tmp_path / "a_mask_1.png", second)
    entry = file_entry(
        tmp_path / "a.png",
        case_id="x",
        patient="p",
        label=1,
        kind="benign",
        masks=[tmp_path / "a_mask.png", tmp_path / "a_mask_1.png"],
        channels=(1,),
    )
    case = entry.load()
    assert (case.case_id, case.patient, case.label, case.kind) == ("x", "p", 1, "benign")
    assert_array_equal(case.mask, first | second)
    assert_array_equal(case.image, RGB8[..., 1:2])


def test_image_files_order_hidden_files_and_links(tmp_path):
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / ".hidden").mkdir()
    elsewhere = tmp_path / "elsewhere.png"
    for path in [
        root / "normal (10).png",
        root / "normal (2).png",
        root / "b" / "c.nii.gz",
        root / ".d.png",
        root / ".hidden" / "e.png",
        root / "notes.txt",
        elsewhere,
    ]:
        path.touch()
    (root / "out.png").symlink_to(elsewhere)
    (root / "in.png").symlink_to(root / "normal (2).png")
    names = [str(path.relative_to(root)) for path in image_files(root)]
    assert names == ["b/c.nii.gz", "in.png", "normal (2).png", "normal (10).png"]
    with pytest.raises(InputError, match="found nothing; expected a folder"):
        image_files(root / "missing")
    with pytest.raises(InputError, match="found a file; expected a folder"):
        image_files(elsewhere)


def test_natural_key_and_stem():
    names = ["a10", "a9", "a01", "a1", "b", "1"]
    assert sorted(names, key=natural_key) == ["1", "a01", "a1", "a9", "a10", "b"]
    assert stem_of("x/a.b.NII.GZ") == "a.b"
