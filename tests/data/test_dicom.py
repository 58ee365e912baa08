"""DICOM as pydicom writes it comes back voxel by voxel, each voxel at its place."""

import sys
import warnings

import cv2
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.data.folder import folder as read_folder
from caal_jax.data.readers import file_entry, image_files, read_image, read_mask
from caal_jax.data.writers import write_map
from caal_jax.errors import InputError
from caal_jax.predict import list_inputs, output_names

pydicom = pytest.importorskip("pydicom")
uid = pydicom.uid

RNG = np.random.default_rng(0)
PIXELS = cv2.GaussianBlur(RNG.integers(0, 4096, (40, 33), np.uint16), (5, 5), 0)
VOLUME = RNG.integers(0, 4096, (5, 8, 6)).astype(np.uint16)  # (slice, row, column)
# Oblique and not axis-aligned: a wrong sign or order cannot pass.
ROW_DIRECTION = np.array([0.8, 0.6, 0.0])  # of increasing column
COLUMN_DIRECTION = np.array([0.0, 0.0, -1.0])  # of increasing row
NORMAL = np.cross(ROW_DIRECTION, COLUMN_DIRECTION)
ORIGIN = np.array([-30.0, 12.5, 100.0])


def write(path, pixels, *, syntax=uid.ExplicitVRLittleEndian, **fields):
    """A file whose pixels are (H, W), or (frames, H, W)."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.Dataset()
    data.file_meta = meta
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.BitsAllocated = 1, 16
    data.BitsStored, data.HighBit = 12, 11
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def place(index, spacing=2.5):
    position = ORIGIN + index * spacing * NORMAL
    return {
        "ImagePositionPatient": list(position),
        "ImageOrientationPatient": [*ROW_DIRECTION, *COLUMN_DIRECTION],
    }


def write_series(folder, *, order=(3, 0, 4, 1, 2), series="1.2.9", suffix=".dcm", **fields):
    """The slices of VOLUME, named in an order that is not theirs."""
    for number, index in enumerate(order):
        write(
            folder / f"{number}{suffix}",
            VOLUME[index],
            SeriesInstanceUID=series,
            PixelSpacing=[0.5, 0.25],
            **{**place(index), **fields},
        )
    return folder


def world(index, row, column, spacing=2.5):
    """PS3.3 C.7.6.2.1.1 for one voxel, in RAS."""
    lps = ORIGIN + index * spacing * NORMAL
    lps = lps + row * 0.5 * COLUMN_DIRECTION + column * 0.25 * ROW_DIRECTION
    return lps * [-1, -1, 1]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_series_comes_back_voxel_by_voxel(tmp_path, axis, suffix):
    folder = write_series(tmp_path / "a", suffix=suffix)
    (folder / "._0.dcm").write_bytes(b"what a Mac leaves behind")
    (folder / "DICOMDIR").write_bytes((folder / f"0{suffix}").read_bytes())
    assert image_files(tmp_path) == [folder]
    case = read_image(folder, slice_axis=axis)
    assert case.image.dtype == np.uint16
    array = np.moveaxis(VOLUME, 0, 2)  # (row, column, slice)
    assert_array_equal(case.image[..., 0], np.moveaxis(array, axis, 0))
    sizes = [0.5, 0.25, 2.5]
    assert_allclose(case.geometry.spacing_mm, [sizes.pop(axis), *sizes])
    assert case.geometry.path == folder
    for index, row, column in [(0, 0, 0), (4, 7, 5), (2, 0, 5), (1, 3, 0)]:
        got = case.geometry.affine @ [row, column, index, 1]
        assert_allclose(got[:3], world(index, row, column), atol=1e-6)


def test_map_of_a_series_lies_where_the_series_does(tmp_path):
    folder = write_series(tmp_path / "a")
    case = read_image(folder, slice_axis=1)
    values = RNG.random(case.image.shape[:-1]).astype(np.float32)
    got = nib.load(write_map(tmp_path / "m", values, case))
    for index, row, column in [(0, 0, 0), (4, 7, 5), (2, 0, 5)]:
        at = np.linalg.solve(got.affine, [*world(index, row, column), 1])[:3]
        assert got.get_fdata()[tuple(at.round().astype(int))] == values[column, row, index]
        assert_allclose(at, at.round(), atol=1e-4)


def test_series_values_after_rescaling(tmp_path):
    folder = write_series(tmp_path / "a", RescaleSlope="2", RescaleIntercept="-1024")
    image = read_image(folder).image
    assert image.dtype == np.float32
    assert_array_equal(image[..., 0], VOLUME * 2.0 - 1024)
    # PET scales every slice in its own way, and some by one.
    for number, index in enumerate((3, 0, 4, 1, 2)):
        path = folder / f"{number}.dcm"
        data = pydicom.dcmread(path)
        data.RescaleSlope, data.RescaleIntercept = index + 1, 0
        data.save_as(path)
    want = VOLUME * np.arange(1.0, 6)[:, None, None]
    assert_array_equal(read_image(folder).image[..., 0], want)
    write_series(tmp_path / "b", PhotometricInterpretation="MONOCHROME1")
    assert_array_equal(read_image(tmp_path / "b").image[..., 0], 4095 - VOLUME)


def test_tilted_series_keeps_its_shear(tmp_path):
    for index in range(5):
        where = place(index)
        where["ImagePositionPatient"] = list(ORIGIN + index * np.array([0.3, -0.4, 2.0]))
        write(
            tmp_path / f"{index}.dcm",
            VOLUME[index],
            SeriesInstanceUID="1.2",
            PixelSpacing=[1, 1],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=where["ImagePositionPatient"],
        )
    affine = read_image(tmp_path).geometry.affine
    assert_allclose(affine[:3, 2], [-0.3, 0.4, 2.0], atol=1e-6)


def test_series_that_cannot_be_used(tmp_path):
    def broken(name, found, **fields):
        with pytest.raises(InputError, match=found):
            read_image(write_series(tmp_path / name, **fields))

    broken(
        "gap",
        r"a gap of 5 mm between 2\.dcm and 3\.dcm, with 2\.5 mm.*1 missing",
        order=(0, 1, 2, 4),
    )
    broken("twice", r"0\.dcm and 1\.dcm at the same position", order=(0, 0, 1, 2, 3))
    folder = write_series(tmp_path / "mixed", order=(0, 1, 2))
    write(
        folder / "9.dcm", VOLUME[4], SeriesInstanceUID="1.7", PixelSpacing=[0.5, 0.25], **place(4)
    )
    with pytest.raises(InputError, match="mixed: found 2 DICOM series; expected one"):
        read_image(folder)
    folder = write_series(tmp_path / "sizes", order=(0, 1, 2))
    write(
        folder / "9.dcm",
        VOLUME[4, :4],
        SeriesInstanceUID="1.2.9",
        PixelSpacing=[0.5, 0.25],
        **place(3),
    )
    with pytest.raises(InputError, match=r"9\.dcm: found Rows 4; expected 8, as in 0\.dcm"):
        read_image(folder)
    folder = write_series(tmp_path / "cut", order=(0, 1, 2))
    path = folder / "2.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="broken data"):
        read_image(folder)
    broken("big", "big: found an image of 36000000000 bytes", Rows=60000, Columns=60000)
    sizes = {"Rows": 60000, "Columns": 60000, "BitsAllocated": 32}
    broken("deep", "deep: found an image of 72000000000 bytes", **sizes)
    broken("scaled", "scaled: found an image of 72000000000 bytes", **sizes, RescaleSlope=2)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_positions_that_are_no_numbers(tmp_path):
    write_series(tmp_path, ImagePositionPatient=["nan", 0, 0])
    with pytest.raises(InputError, match="positions that are no numbers"):
        read_image(tmp_path)


def test_folders_of_single_images_are_no_series(tmp_path):
    for index in range(3):
        write(tmp_path / "x" / f"{index}.dcm", PIXELS, SeriesInstanceUID="1.2")
        write(tmp_path / "y" / f"{index}.dcm", PIXELS, SeriesInstanceUID=f"1.2.{index}", **place(1))
    names = [str(path.relative_to(tmp_path)) for path in image_files(tmp_path)]
    assert names == [f"{folder}/{index}.dcm" for folder in "xy" for index in range(3)]


def test_single_image_values_and_spacing(tmp_path):
    path = write(tmp_path / "a.dcm", PIXELS, PixelSpacing=[0.5, 0.25])
    case = read_image(path)
    assert case.image.dtype == np.uint16
    assert_array_equal(case.image[..., 0], PIXELS)
    assert case.geometry.spacing_mm == (0.5, 0.25)
    case = read_image(write(path, PIXELS, PixelSpacing=["0", "1e300"]))
    assert case.geometry.spacing_mm == (1.0, 1.0)
    image = read_image(write(path, PIXELS, RescaleSlope=2, RescaleIntercept=-1024)).image
    assert image.dtype == np.float32
    assert_array_equal(image[..., 0], PIXELS * 2.0 - 1024)
    image = read_image(write(path, PIXELS, PhotometricInterpretation="MONOCHROME1")).image
    assert_array_equal(image[..., 0], 4095 - PIXELS)
    signed = PIXELS.astype(np.int16) - 2048
    image = read_image(write(path, signed, PhotometricInterpretation="MONOCHROME1")).image
    assert_array_equal(image[..., 0], -1 - signed)


@pytest.mark.parametrize("way", ["single", "series", "frames"])
def test_dark_is_high_and_values_are_rescaled(tmp_path, way):
    fields = {"PhotometricInterpretation": "MONOCHROME1"}
    scale = {"RescaleSlope": 2, "RescaleIntercept": -1024}

    def read(**fields):
        if way == "series":
            return read_image(write_series(tmp_path, **fields)).image[..., 0]
        pixels = VOLUME[:1] if way == "single" else VOLUME
        path = write(tmp_path / "a.dcm", pixels, **fields, NumberOfFrames=len(pixels))
        return read_image(path).image[..., 0]

    stored = VOLUME[0] if way == "single" else VOLUME
    plain = read(**fields)
    assert plain.dtype == np.uint16
    assert_array_equal(plain, 4095 - stored)
    # The order of output values is turned round; their range stays that of the stored ones.
    scaled = read(**fields, **scale)
    assert scaled.dtype == np.float32
    assert_array_equal(scaled, (4095 - stored) * 2.0 - 1024)


def test_stored_values_of_32_bits(tmp_path):
    wide = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}
    large = VOLUME.astype(np.uint32) << 9
    for index, pixels in enumerate(large):
        where = {**place(index), "PixelSpacing": [1, 1], "SeriesInstanceUID": "1.2"}
        write(tmp_path / f"{index}.dcm", pixels, **wide, **where)
    image = read_image(tmp_path).image
    assert image.dtype == np.float32
    assert_array_equal(image[..., 0], large)


def test_frames_of_one_file(tmp_path):
    path = write(
        tmp_path / "a.dcm", VOLUME, NumberOfFrames=5, PixelSpacing=[0.5, 0.25], SliceThickness=3
    )
    case = read_image(path)
    assert_array_equal(case.image[..., 0], VOLUME)
    assert case.geometry.spacing_mm == (3.0, 0.5, 0.25)
    colour = RNG.integers(0, 255, (2, 8, 6, 3)).astype(np.uint8)
    write(
        path,
        VOLUME,
        NumberOfFrames=2,
        SamplesPerPixel=3,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PlanarConfiguration=0,
        PhotometricInterpretation="RGB",
        PixelData=colour.tobytes(),
    )
    with pytest.raises(InputError, match="2 colour frames"):
        read_image(path)


def group(**fields):
    data = pydicom.Dataset()
    for name, value in fields.items():
        setattr(data, name, value)
    return pydicom.Sequence([data])


def test_enhanced_frames_are_sorted_and_rescaled_each(tmp_path):
    order = (3, 0, 4, 1, 2)
    shared = group(
        PixelMeasuresSequence=group(PixelSpacing=[0.5, 0.25]),
        PlaneOrientationSequence=group(ImageOrientationPatient=[*ROW_DIRECTION, *COLUMN_DIRECTION]),
    )
    own = pydicom.Sequence()
    for index in order:
        own += group(
            PlanePositionSequence=group(ImagePositionPatient=place(index)["ImagePositionPatient"]),
            PixelValueTransformationSequence=group(RescaleSlope=index + 1, RescaleIntercept=-7),
        )
    path = write(
        tmp_path / "a.dcm",
        VOLUME[list(order)],
        NumberOfFrames=5,
        SharedFunctionalGroupsSequence=shared,
        PerFrameFunctionalGroupsSequence=own,
    )
    case = read_image(path)
    assert_array_equal(case.image[..., 0], VOLUME * np.arange(1.0, 6)[:, None, None] - 7)
    got = case.geometry.affine @ [7, 5, 4, 1]
    assert_allclose(got[:3], world(4, 7, 5), atol=1e-6)
    own.pop()
    write(
        path,
        VOLUME,
        NumberOfFrames=5,
        SharedFunctionalGroupsSequence=shared,
        PerFrameFunctionalGroupsSequence=own,
    )
    with pytest.raises(InputError, match="4 descriptions of 5 frames"):
        read_image(path)


@pytest.mark.parametrize("affine", ["turned", "own", "elsewhere"])
def test_nifti_mask_of_a_series_is_turned_to_it(tmp_path, affine):
    folder = write_series(tmp_path / "a")
    want = VOLUME > 3000
    # Axes (column, row, slice), as converters write them, and columns and slices run backwards.
    stored = np.moveaxis(want, 0, 2).transpose(1, 0, 2)[::-1, :, ::-1]
    to_image = np.array([[0, 1, 0, 0], [-1, 0, 0, 5], [0, 0, -1, 4], [0, 0, 0, 1.0]])
    matrix = read_image(folder).geometry.affine @ to_image
    if affine == "own":
        stored, matrix = np.moveaxis(want, 0, 2), read_image(folder).geometry.affine
    if affine == "elsewhere":
        matrix[0, 3] += 2
    nib.save(nib.Nifti1Image(stored.astype(np.uint8), matrix), tmp_path / "m.nii.gz")
    entry = file_entry(folder, case_id="a", patient="p", label=1, masks=(tmp_path / "m.nii.gz",))
    if affine == "elsewhere":
        with pytest.raises(InputError, match="lies on other voxels than its image"):
            entry.load()
    else:
        assert_array_equal(entry.load().mask, want)


def test_nifti_mask_of_a_nifti_image_with_a_meaningless_affine_is_as_stored(tmp_path):
    volume = np.moveaxis(VOLUME, 0, 2)
    nib.save(nib.Nifti1Image(volume.astype(np.int16), np.diag([3.0, 2, 5, 1])), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image((volume > 9).astype(np.uint8), np.eye(4)), tmp_path / "m.nii")
    case = read_image(tmp_path / "a.nii")
    mask = read_mask(tmp_path / "m.nii", (5, 8, 6), geometry=case.geometry)
    assert_array_equal(mask, VOLUME > 9)


def test_a_folder_of_series_trains_and_tests(tmp_path):
    for patient in ("ann", "bob", "cem", "dan"):
        write_series(tmp_path / "normal" / patient / "scan")
    write_series(tmp_path / "test" / "lesion" / "eve")
    want = VOLUME > 3000
    affine = read_image(tmp_path / "test" / "lesion" / "eve").geometry.affine
    (tmp_path / "ground_truth" / "lesion").mkdir(parents=True)
    mask = nib.Nifti1Image(np.moveaxis(want, 0, 2).astype(np.uint8), affine)
    nib.save(mask, tmp_path / "ground_truth" / "lesion" / "eve_mask.nii.gz")
    data = read_folder(tmp_path)
    cases = [entry.load() for entry in data.train + data.validation]
    assert sorted(case.case_id for case in cases) == [
        f"{patient}-scan" for patient in ("ann", "bob", "cem", "dan")
    ]
    assert sorted(case.patient for case in cases) == ["ann/", "bob/", "cem/", "dan/"]
    (case,) = [entry.load() for entry in data.test]
    assert_array_equal(case.image[..., 0], VOLUME)
    assert_array_equal(case.mask, want)
    assert case.patient == "test/lesion-eve"
    # A series' own folder is a sub-folder too.
    write_series(tmp_path / "test" / "lesion" / "ann")
    assert [entry.load().patient for entry in read_folder(tmp_path).test] == ["ann/", "eve/"]
    write_series(tmp_path / "normal", suffix="")
    assert "normal" in {
        e.load().patient for e in read_folder(tmp_path, validation_fraction=0).train
    }
    write_series(tmp_path / "test")
    with pytest.raises(InputError, match="found an image directly in test/"):
        read_folder(tmp_path)
    home = tmp_path / "normal" / "ann"
    assert list_inputs(home) == [home / "scan"]
    assert output_names([home / "scan"], home) == ["scan"]
    assert list_inputs(home / "scan") == [home / "scan"]
    assert output_names([home / "scan"], home / "scan") == ["scan"]


def encapsulated(frames):
    return pydicom.encaps.encapsulate([frame + b"\0" * (len(frame) % 2) for frame in frames])


def jpeg(rows=40, columns=33):
    image = cv2.resize((PIXELS // 16).astype(np.uint8), (columns, rows))
    return cv2.imencode(".jpg", image)[1].tobytes()


EIGHT = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}


@pytest.mark.parametrize("kind", ["rle", "jpeg", "jpeg2000", "jpegls", "lossless"])
def test_compressed_pixels(tmp_path, kind):
    path = tmp_path / "a.dcm"
    if kind == "rle":
        data = pydicom.dcmread(write(path, PIXELS))
        data.compress(uid.RLELossless)
        data.save_as(path)
    elif kind == "jpeg":
        fields = {**EIGHT, "PixelData": encapsulated([jpeg()])}
        write(path, PIXELS, syntax=uid.JPEGBaseline8Bit, **fields)
        want = cv2.imdecode(np.frombuffer(jpeg(), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert_allclose(read_image(path).image[..., 0], want.astype(int), atol=1)
        return
    elif kind == "jpeg2000":
        stream = cv2.imencode(".jp2", PIXELS, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
        raw = stream[1].tobytes()
        raw = raw[raw.index(b"\xff\x4f\xff\x51") :]
        fields = {"PixelData": encapsulated([raw]), "BitsStored": 16, "HighBit": 15}
        write(path, PIXELS, syntax=uid.JPEG2000Lossless, **fields)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SWIG's, on Python 3.12 and later
            gdcm = pytest.importorskip("gdcm")
        plain = write(
            tmp_path / "plain.dcm", PIXELS, SOPClassUID=uid.CTImageStorage, SOPInstanceUID="1.2.3"
        )
        reader = gdcm.ImageReader()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        syntax = "JPEGLSLossless" if kind == "jpegls" else "JPEGLosslessProcess14_1"
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_encapsulated
    assert_array_equal(read_image(path).image[..., 0], PIXELS)


def test_a_frame_that_declares_another_size(tmp_path):
    fields = {**EIGHT, "PixelData": encapsulated([jpeg(60, 50)])}
    path = write(tmp_path / "a.dcm", PIXELS, syntax=uid.JPEGBaseline8Bit, **fields)
    with pytest.raises(InputError, match="a frame of 60 x 50 in an image of 40 x 33"):
        read_image(path)
    stream = cv2.imencode(".jp2", PIXELS)[1].tobytes()
    stream = stream[stream.index(b"\xff\x4f\xff\x51") :]
    fields = {"Rows": 20, "PixelData": encapsulated([stream])}
    write(path, PIXELS, syntax=uid.JPEG2000Lossless, **fields)
    with pytest.raises(InputError, match="a frame of 40 x 33 in an image of 20 x 33"):
        read_image(path)


def test_sizes_are_checked_before_allocation(tmp_path):
    path = write(tmp_path / "a.dcm", PIXELS, Rows=60000, Columns=60000)
    with pytest.raises(InputError, match="an image of 7200000000 bytes"):
        read_image(path)
    write(path, PIXELS, Rows=0)
    with pytest.raises(InputError, match="declares the size 0 x 33"):
        read_image(path)
    # A deflated data set of 4 MB in a file of a few kB.
    data = pydicom.dcmread(write(path, PIXELS))
    data.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    data.TextValue = "x" * 4_000_000
    data.save_as(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="an image of 1000001 bytes; expected at most 1000000"):
        read_image(path, max_bytes=1_000_000)
    assert_array_equal(read_image(path).image[..., 0], PIXELS)


def test_dicom_that_cannot_be_used(tmp_path):
    path = write(tmp_path / "a.dcm", PIXELS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="broken data"):
        read_image(path)
    write(path, PIXELS, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(InputError, match="PALETTE COLOR"):
        read_image(path)
    # A table from stored to output values, which nothing here applies.
    table = group(LUTDescriptor=[4096, 0, 16], ModalityLUTType="US", LUTData=bytes(8192))
    write(path, PIXELS, ModalityLUTSequence=table)
    write_series(tmp_path / "series", ModalityLUTSequence=table)
    for one in (path, tmp_path / "series"):
        with pytest.raises(InputError, match="found a table of output values"):
            read_image(one)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"pip install 'caal_jax\[dicom\]'"):
        read_image(folder / "0.dcm")
    assert len(image_files(folder)) == 5
