"""Image files in, cases out.

Medical archives hold half-copied and mislabelled files, and decoders differ in how quietly they
fill the missing half with grey. Every reader checks the declared size before it allocates, decodes
to the last byte, and whatever goes wrong becomes one `InputError`.
"""

import dataclasses
import io
import os
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from caal_jax.data.arrays import MAX_BYTES, check_size, native, times, unreadable
from caal_jax.data.case import Case, Entry, Geometry
from caal_jax.data.dicom import is_dicom, is_series, read_dicom, read_series
from caal_jax.data.itk import read_metaimage, read_nrrd
from caal_jax.data.nifti import read_nifti
from caal_jax.errors import InputError
from caal_jax.files import printable

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
VOLUME_READERS = {
    ".nii.gz": read_nifti,
    ".nii": read_nifti,
    ".mha": read_metaimage,
    ".mhd": read_metaimage,
    ".nrrd": read_nrrd,
    ".nhdr": read_nrrd,
    ".dcm": read_dicom,
}
FORMATS = "PNG, JPEG, TIFF, NIfTI, MetaImage, NRRD, DICOM"
SUFFIXES = (*VOLUME_READERS, *RASTER_SUFFIXES)


def suffix_of(path):
    """The supported suffix of a file name, in lower case (".nii.gz" as one), or ""."""
    name = os.path.basename(path).lower()  # Path(path).name takes ten times as long
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def stem_of(path):
    """The file name without its supported suffix: "a.nii.gz" gives "a"."""
    name = os.path.basename(path)
    return name[: len(name) - len(suffix_of(path))]


def natural_key(path):
    """Sort key that puts "normal (2)" before "normal (10)"."""
    parts = re.split(r"(\d+)", str(path))
    # The text itself breaks ties such as 01 and 1, so that the order never depends on the disk.
    # Digits beyond the decimal ones, such as superscripts, are no numbers to int().
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], str(path)


def existing_folder(path, *, where, remedy):
    """`path` as a `Path`; raises `InputError` unless it is a folder whose files can be reached."""
    path = Path(path)
    try:
        if not path.is_dir():
            found = "a file" if path.exists() else "nothing"
            raise InputError(f"{where} {path}", found=found, expected="a folder", remedy=remedy)
        os.stat(os.path.join(path, "."))  # names can be listed where files cannot be reached
    except OSError as error:
        refuse_folder(error, path)
    return path


def image_files(folder):
    """Images and volumes below a folder in natural order: supported files, and DICOM series.

    A series stands as the folder of its slices. DICOM files count under any name. Hidden files and
    folders are left out, and so are links that point out of the folder or at folders: a data
    folder should not quietly pull in something from elsewhere, or be searched in circles.
    Raises: InputError unless `folder` is a folder, or if a folder below cannot be opened.
    """
    folder = existing_folder(folder, where="image folder", remedy="Check the path.")
    inside = folder.resolve()
    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        existing_folder(parent, where="image folder", remedy="Try again.")
        # A link in a circle is no file.
        paths = [
            path
            for path in paths
            if path.is_file() and (not path.is_symlink() or path.resolve().is_relative_to(inside))
        ]
        dicoms = dicom_files(paths)
        found += [path for path in paths if suffix_of(path) and path not in dicoms]
        found += [Path(parent)] if is_series(dicoms) else dicoms
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder)))


def dicom_files(paths):
    """Those of the paths that are DICOM files, by suffix or else by content, in natural order."""
    found = [
        path
        for path in paths
        if path.name != "DICOMDIR"
        and (suffix_of(path) == ".dcm" or (not suffix_of(path) and is_dicom(path)))
    ]
    return sorted(found, key=natural_key)


def read_image(path, *, slice_axis=2, max_bytes=MAX_BYTES):
    """Reads one file, or a folder with one DICOM series, as a `Case` with neither mask nor label.

    The image is (H, W, C), or (D, H, W, 1) for a volume, whose array axis `slice_axis` (0, 1 or 2)
    comes first; the axes of NIfTI, MetaImage and NRRD are those of the file, of DICOM volumes
    (row, column, slice). uint8, uint16, int16 and float32 stay as they are; bool becomes uint8,
    int8 int16, and everything else float32, NIfTI and DICOM values after their slope and
    intercept. Alpha is dropped, palettes and 1-bit images are expanded to 0..255, colour files
    whose channels are equal become one channel, MONOCHROME1 is inverted so that high is bright.

    Raises: InputError if the file is missing, empty, truncated, of another kind, larger than
    `max_bytes` once decoded (by its header, before anything is allocated), has several pages or
    channels that are no picture, or holds NaN or infinite values.
    """
    path = Path(path)
    try:
        # Decoders warn about odd metadata in files whose pixels are fine.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image, geometry = _read(path, slice_axis, max_bytes)
            image = native(path, image)
    except InputError:
        raise
    except Exception as error:
        # Broken files raise nearly every built-in exception out of decoders.
        reason = f"{type(error).__name__}: {error}"[:300]
        raise unreadable(path, f"broken data ({reason})") from error
    if image.shape[-1] > 1 and (image == image[..., :1]).all():
        image = image[..., :1]
    return Case(printable(stem_of(path)), np.ascontiguousarray(image), geometry)


def _read(path, slice_axis, max_bytes):
    if path.is_dir():
        children = [child for child in path.iterdir() if child.is_file()]
        paths = dicom_files([child for child in children if not child.name.startswith(".")])
        if not is_series(paths):
            raise InputError(
                path,
                found="a folder",
                expected="an image file, or a folder with one DICOM series",
                remedy="Check the path.",
            )
        return read_series(path, paths, slice_axis, max_bytes)
    suffix = suffix_of(path)
    if not suffix and is_dicom(path):
        suffix = ".dcm"
    if not suffix:
        raise InputError(
            path,
            found=f"the suffix {path.suffix!r}",
            expected=f"one of {', '.join(SUFFIXES)}",
            remedy="Convert the file, or name it after its format.",
        )
    if not path.is_file():
        raise InputError(
            path, found="no such file", expected="an image file", remedy="Check the path."
        )
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise unreadable(path, "an empty file")
    check_size(path, num_bytes, max_bytes)
    if suffix in RASTER_SUFFIXES:
        return _read_raster(path, max_bytes)
    return VOLUME_READERS[suffix](path, slice_axis, max_bytes)


def refuse_folder(error, folder=None):
    """For `os.walk`, which would leave out what it cannot open: raises `InputError`.

    folder: the one that an `OSError` on a file in it is about.
    """
    raise InputError(
        folder or error.filename,
        found=f"a folder that cannot be opened ({error.strerror})",
        expected="a readable folder",
        remedy="Change its permissions, or move it elsewhere.",
    ) from error


def read_mask(path, shape, *, slice_axis=2, geometry=None):
    """Reads a lesion mask as bool of `shape`, (H, W) or (D, H, W).

    A pixel is inside if any colour channel is above 0, since label files count 0, 1, 2, ... as
    often as they use 255. JPEG smears edges, so there the threshold is half of 255.
    geometry: the image's. A mask whose affine says that it has the same voxels with axes in
    another order or direction (NIfTI for DICOM) is turned; one of the image's own format whose
    affine says nothing sensible is taken as it is stored.
    Raises: InputError as `read_image`, or if the mask has another size or grid than its image.
    """
    case = read_image(path, slice_axis=slice_axis)
    image = case.image
    if geometry is not None and case.is_volume:
        image = _turned(path, case, geometry)
    if image.shape[:-1] != tuple(shape):
        raise InputError(
            path,
            found=f"a mask of {times(image.shape[:-1])}",
            expected=f"the size of its image, {times(shape)}",
            remedy="Resample the mask to the grid of the image (nearest neighbour).",
        )
    threshold = 127 if suffix_of(path) in (".jpg", ".jpeg") else 0
    return (image > threshold).any(axis=-1)


def _turned(path, mask, geometry):
    """The volume of a mask with its axes as the image has them."""
    have, want = mask.geometry.affine, geometry.affine
    same_format = geometry.path is None or suffix_of(geometry.path) == suffix_of(path)
    if have is None or want is None or not abs(np.linalg.det(have)) > 1e-9:
        return mask.image
    stored = np.moveaxis(mask.image[..., 0], 0, mask.geometry.slice_axis)
    # From the image's voxel to the mask's: for each image axis, the mask axis that follows it.
    turn = np.linalg.solve(have, want)
    axes = np.abs(turn[:3, :3]).argmax(axis=0)
    signs = np.sign(turn[axes, range(3)])
    ends = np.array(stored.shape) - 1
    exact = np.zeros((3, 4))
    exact[axes, range(3)] = signs
    exact[axes, 3] = np.where(signs < 0, ends[axes], 0)
    # Where the image's first and last voxels fall in the mask, in voxels.
    corners = np.concatenate([np.vstack([np.zeros(3), np.eye(3) * ends[axes]]).T, np.ones((1, 4))])
    if len(set(axes)) == 3 and np.abs((turn[:3] - exact) @ corners).max() < 0.5:
        turned = np.flip(stored.transpose(axes), np.flatnonzero(signs < 0))
        return np.moveaxis(turned, geometry.slice_axis, 0)[..., None]
    if not same_format:
        raise InputError(
            path,
            found="a mask that lies on other voxels than its image",
            expected="the same voxels, in any order of axes",
            remedy="Resample the mask to the grid of the image (nearest neighbour).",
        )
    return mask.image


def without_masks(paths):
    """The paths but masks, `<image>_mask` or `<image>_mask_1`, of images that lie beside them."""
    images = {path.parent / stem_of(path) for path in paths}

    def is_mask(path):
        base, found = re.subn(r"_mask(_\d+)?$", "", stem_of(path))
        return found and path.parent / base in images

    return [path for path in paths if not is_mask(path)]


def pick_channels(image, channels):
    """The channels of an image (..., C) by index; of a grey one its only one, again and again."""
    return image[..., [index if image.shape[-1] > 1 else 0 for index in channels]]


def file_entry(
    path, *, case_id, patient, label=0, kind="normal", masks=(), slice_axis=2, channels=None
):
    """An entry that reads `path` and, for abnormal cases, the union of its `masks`.

    A normal case gets an empty mask, an abnormal one without mask files gets None.
    channels: picks colour channels by index after reading; a file stored as grey counts as one
    whose channels are all equal.
    """
    case_id, patient = printable(case_id), printable(patient)

    def load():
        case = read_image(path, slice_axis=slice_axis)
        image, shape = case.image, case.image.shape[:-1]
        if channels is not None:
            image = pick_channels(image, channels)
        mask = None if label else np.zeros(shape, bool)
        if masks:
            how = {"slice_axis": slice_axis, "geometry": case.geometry}
            mask = np.any([read_mask(m, shape, **how) for m in masks], axis=0)
        return dataclasses.replace(
            case,
            case_id=case_id,
            image=image,
            mask=mask,
            label=label,
            kind=kind,
            patient=patient,
        )

    return Entry(case_id, load, (path, *masks))


def _read_raster(path, max_bytes):
    data = path.read_bytes()
    picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
    tags = getattr(picture, "tag_v2", {})
    bits = max(tags.get(258, (8,))) if picture.format == "TIFF" else 8
    if picture.format == "PNG":
        bits = data[24]  # the IHDR chunk always comes first
    bands = 3 if picture.mode == "P" else len(picture.getbands())
    num_values = picture.width * picture.height * bands
    check_size(path, num_values * max(bits // 8, 1), max_bytes)
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
    image = image if image.ndim == 3 else image[..., None]
    return image, Geometry(spacing_mm=(1.0, 1.0), path=path)
