"""Image files in, cases out: PNG, JPEG, TIFF, NIfTI and single-frame DICOM.

Medical archives hold half-copied and mislabelled files, and decoders differ in how quietly they
fill the missing half with grey. Every reader here checks the declared size before it allocates,
decodes to the last byte, and turns whatever goes wrong into one `InputError`.
"""

import dataclasses
import gzip
import io
import math
import os
import re
import warnings
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from PIL import Image

from caal_jax.data.case import Case, Entry, Geometry
from caal_jax.errors import InputError

MAX_BYTES = 2**31
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = (*NIFTI_SUFFIXES, *RASTER_SUFFIXES, ".dcm")


def suffix_of(path):
    """The supported suffix of a file name, in lower case (".nii.gz" as one), or ""."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def stem_of(path):
    """The file name without its supported suffix: "a.nii.gz" gives "a"."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(path))]


def natural_key(path):
    """Sort key that puts "normal (2)" before "normal (10)"."""
    parts = re.split(r"(\d+)", str(path))
    # The text itself breaks ties such as 01 and 1, so that the order never depends on the disk.
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], str(path)


def existing_folder(path, *, where, remedy):
    """`path` as a `Path`; raises `InputError` unless it is a folder."""
    path = Path(path)
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise InputError(f"{where} {path}", found=found, expected="a folder", remedy=remedy)
    return path


def image_files(folder):
    """Supported files below a folder in natural order.

    Hidden files and folders are left out, and so are links that point out of the folder: a data
    folder should not quietly pull in something from elsewhere.
    Raises: InputError unless `folder` is a folder.
    """
    folder = existing_folder(folder, where="image folder", remedy="Check the path.")
    inside = folder.resolve()
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or not suffix_of(path) or not path.is_file():
                continue
            if path.resolve().is_relative_to(inside):
                found.append(path)
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder)))


def read_image(path, *, slice_axis=2, max_bytes=MAX_BYTES):
    """Reads one file as a `Case` with neither mask nor label.

    The image is (H, W, C), or (D, H, W, 1) for a NIfTI volume, whose array axis `slice_axis`
    (0, 1 or 2) comes first. uint8, uint16, int16 and float32 stay as they are; bool becomes
    uint8, int8 int16, and everything else float32, NIfTI and DICOM values after their slope and
    intercept. Alpha is dropped, palettes and 1-bit images are expanded to 0..255, colour files
    whose channels are equal become one channel, MONOCHROME1 is inverted so that high is bright.

    Raises: InputError if the file is missing, empty, truncated, of another kind, larger than
    `max_bytes` once decoded (by its header, before anything is allocated), has several frames,
    or holds NaN or infinite values.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if not suffix:
        raise InputError(
            path,
            found=f"the suffix {path.suffix!r}",
            expected=f"one of {', '.join(SUFFIXES)}",
            remedy="Convert the file, or name it after its format.",
        )
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError(path, found=found, expected="an image file", remedy="Check the path.")
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise _unreadable(path, "an empty file")
    _check_size(path, num_bytes, max_bytes)
    if suffix in NIFTI_SUFFIXES:
        image, geometry = _read_nifti(path, slice_axis, max_bytes)
    elif suffix == ".dcm":
        image, geometry = _read_dicom(path, max_bytes)
    else:
        image, geometry = _read_raster(path, max_bytes)
    image = _native(path, image)
    if image.shape[-1] > 1 and (image == image[..., :1]).all():
        image = image[..., :1]
    return Case(stem_of(path), np.ascontiguousarray(image), geometry)


def read_mask(path, shape, *, slice_axis=2):
    """Reads a lesion mask as bool of `shape`, (H, W) or (D, H, W).

    A pixel is inside if any colour channel is above 0, since label files count 0, 1, 2, ... as
    often as they use 255. JPEG smears edges, so there the threshold is half of 255.
    Raises: InputError as `read_image`, or if the mask has another size than its image.
    """
    image = read_image(path, slice_axis=slice_axis).image
    if image.shape[:-1] != tuple(shape):
        raise InputError(
            path,
            found=f"a mask of {_times(image.shape[:-1])}",
            expected=f"the size of its image, {_times(shape)}",
            remedy="Resample the mask to the grid of the image (nearest neighbour).",
        )
    threshold = 127 if suffix_of(path) in (".jpg", ".jpeg") else 0
    return (image > threshold).any(axis=-1)


def file_entry(
    path, *, case_id, patient, label=0, kind="normal", masks=(), slice_axis=2, channels=None
):
    """An entry that reads `path` and, for abnormal cases, the union of its `masks`.

    A normal case gets an empty mask, an abnormal one without mask files gets None.
    channels: picks colour channels by index after reading; a file stored as grey counts as one
    whose channels are all equal.
    """

    def load():
        case = read_image(path, slice_axis=slice_axis)
        image, shape = case.image, case.image.shape[:-1]
        if channels is not None:
            image = image[..., [index if image.shape[-1] > 1 else 0 for index in channels]]
        mask = None if label else np.zeros(shape, bool)
        if masks:
            mask = np.any([read_mask(m, shape, slice_axis=slice_axis) for m in masks], axis=0)
        return dataclasses.replace(
            case,
            case_id=case_id,
            image=image,
            mask=mask,
            label=label,
            kind=kind,
            patient=patient,
        )

    return Entry(case_id, load)


def _read_raster(path, max_bytes):
    data = path.read_bytes()
    try:
        # Decoders warn about odd metadata in files whose pixels are fine.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
            tags = getattr(picture, "tag_v2", {})
            bits = max(tags.get(258, (8,))) if picture.format == "TIFF" else 8
            if picture.format == "PNG":
                bits = data[24]  # the IHDR chunk always comes first
            bands = 3 if picture.mode == "P" else len(picture.getbands())
            num_values = picture.width * picture.height * bands
            _check_size(path, num_values * max(bits // 8, 1), max_bytes)
            frames = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1
            if frames > 1:
                raise InputError(
                    path,
                    found=f"{frames} pages",
                    expected="one image per file",
                    remedy="Save the pages as single images, or a volume as NIfTI.",
                )
            picture.load()  # to the last byte: raises where OpenCV fills with grey
            if bits == 16 and bands > 1:
                # Pillow would cut 16-bit colour to 8 bits.
                image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
                image = image[..., 2::-1]
            elif picture.mode in ("L", "F", "I", "RGB") or picture.mode.startswith("I;16"):
                image = np.asarray(picture)
                if bits == 16 and picture.mode == "I":
                    image = image.astype(np.int16 if tags.get(339) == (2,) else np.uint16)
            else:
                mode = "L" if picture.mode in ("1", "LA", "La") else "RGB"
                image = np.asarray(picture.convert(mode))
    except InputError:
        raise
    except Exception as error:
        # Broken files raise nearly every built-in exception out of decoders.
        raise _unreadable(path, f"broken image data ({error})") from error
    image = image if image.ndim == 3 else image[..., None]
    return image, Geometry(spacing_mm=(1.0, 1.0), path=path)


def _read_nifti(path, slice_axis, max_bytes):
    try:
        nifti = _decode_nifti(path, max_bytes)
        proxy = nifti.dataobj
        if (proxy.slope, proxy.inter) == (1, 0):
            image = proxy.get_unscaled()
        else:
            image = np.asarray(proxy, dtype=np.float32)
        spacing = nib.affines.voxel_sizes(nifti.affine)
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(path, f"broken NIfTI data ({error})") from error
    while image.ndim > 2 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3):
        raise InputError(
            path,
            found=f"{image.ndim} dimensions, {_times(image.shape)}",
            expected="an image or a volume (2 or 3 dimensions)",
            remedy="Save one time point or channel per file.",
        )
    spacing = [float(mm) if np.isfinite(mm) and mm > 0 else 1.0 for mm in spacing[: image.ndim]]
    if image.ndim == 2:
        slice_axis = None
    else:
        image = np.moveaxis(image, slice_axis, 0)
        spacing.insert(0, spacing.pop(slice_axis))
    return image[..., None], Geometry(tuple(spacing), slice_axis, nifti.affine, path)


def _decode_nifti(path, max_bytes):
    """The whole file as a nibabel image in memory.

    nibabel stops at the last voxel it needs; reading the stream to its end has gzip compare the
    checksum, so that a damaged file does not pass.
    """
    opener = gzip.open if suffix_of(path) == ".nii.gz" else open
    with opener(path, "rb") as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        for kind in (nib.Nifti1Image, nib.Nifti2Image):
            size = kind.header_class.sizeof_hdr
            if len(start) >= size and kind.header_class.may_contain_header(start):
                header = kind.header_class(start[:size], check=False)
                break
        else:
            raise _unreadable(path, "no NIfTI header")
        if not bytes(header["magic"]).startswith(b"n+"):
            raise _unreadable(path, "a header whose voxels are in another file")
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        if not shape or min(shape) < 1:
            raise _unreadable(path, f"a header that declares the size {_times(shape)}")
        wanted = int(header["vox_offset"]) + math.prod(map(int, shape)) * dtype.itemsize
        _check_size(path, wanted, max_bytes)
        data = start + stream.read(wanted - len(start))
        if len(data) < wanted:
            raise _unreadable(path, f"{len(data)} bytes where its header declares {wanted}")
        stream.read(1)
    return kind.from_bytes(data)


def _read_dicom(path, max_bytes):
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            path,
            found="a DICOM file, but pydicom is not installed",
            expected="the optional DICOM reader",
            remedy="Run: pip install 'caal_jax[dicom]'.",
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path)
            frames = int(header.get("NumberOfFrames") or 1)
            samples = int(header.get("SamplesPerPixel", 1))
            depth = int(header.BitsAllocated) // 8
            num_values = int(header.Rows) * int(header.Columns) * samples * frames
            _check_size(path, num_values * max(depth, 1), max_bytes)
            if frames > 1:
                raise InputError(
                    path,
                    found=f"{frames} frames",
                    expected="a single-frame DICOM file",
                    remedy="Convert the series to NIfTI.",
                )
            image = header.pixel_array
            photometric = header.PhotometricInterpretation
            if samples == 1:
                image = _dicom_grey(path, header, image, photometric)
            spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing") or (1, 1)
            spacing = tuple(float(mm) for mm in spacing)
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(path, f"broken DICOM data ({error})") from error
    image = image if image.ndim == 3 else image[..., None]
    return image, Geometry(spacing_mm=spacing, path=path)


def _dicom_grey(path, header, image, photometric):
    """Stored values to bright-is-high output values (PS3.3 C.7.6.3.1.2 and C.11.1.1.2)."""
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(
            path,
            found=f"the photometric interpretation {photometric}",
            expected="MONOCHROME1, MONOCHROME2 or RGB",
            remedy="Convert the file to grey values.",
        )
    slope = float(header.get("RescaleSlope", 1))
    intercept = float(header.get("RescaleIntercept", 0))
    if photometric == "MONOCHROME1":
        # The sum of the smallest and largest storable value; the type's width holds the result.
        ends = -1 if header.PixelRepresentation else 2 ** int(header.BitsStored) - 1
        image = (ends - image.astype(np.int64)).astype(image.dtype)
    if (slope, intercept) == (1, 0):
        return image
    return (image * slope + intercept).astype(np.float32)


def _native(path, image):
    """One of uint8, uint16, int16, float32 in this machine's byte order, and finite."""
    kind, size = image.dtype.kind, image.dtype.itemsize
    if kind not in "buif":
        raise InputError(
            path,
            found=f"values of type {image.dtype}",
            expected="real numbers",
            remedy="Save grey values.",
        )
    if kind == "b" or (kind == "u" and size == 1):
        return image.astype(np.uint8, copy=False)
    if kind == "u" and size == 2:
        return image.astype(np.uint16, copy=False)
    if kind == "i" and size <= 2:
        return image.astype(np.int16, copy=False)
    with np.errstate(over="ignore"):
        image = image.astype(np.float32, copy=False)
    num_bad = image.size - np.count_nonzero(np.isfinite(image))
    if num_bad:
        raise InputError(
            path,
            found=f"{num_bad} of {image.size} values NaN or infinite",
            expected="finite values",
            remedy="Replace them (0 for background) or leave the file out.",
        )
    return image


def _check_size(path, num_bytes, max_bytes):
    if num_bytes > max_bytes:
        raise InputError(
            path,
            found=f"an image of {num_bytes} bytes",
            expected=f"at most {max_bytes}",
            remedy="Crop or downscale it; if the file is small, its header is probably broken.",
        )


def _unreadable(path, found):
    return InputError(
        path,
        found=found,
        expected=f"a complete {suffix_of(path)} file",
        remedy="Copy or export the file again, or leave it out.",
    )


def _times(shape):
    return " x ".join(str(int(side)) for side in shape)
