"""DICOM: single images, multi-frame files, and series of slices as one volume.

Positions, orientations and value transforms as in PS3.3 C.7.6.2 (Image Plane), C.7.6.16
(multi-frame functional groups), C.7.6.3.1.2 and C.11.1.1.2 (photometric interpretation and
rescaling). DICOM's patient axes (LPS) become NIfTI's (RAS).
"""

import math
import struct
import warnings
import zlib
from typing import NamedTuple

import numpy as np

from caal_jax.data.arrays import (
    MAX_BYTES,
    check_shape,
    check_size,
    oriented,
    plausible,
    times,
    unreadable,
)
from caal_jax.data.case import Geometry
from caal_jax.errors import InputError

DEFLATED = "1.2.840.10008.1.2.1.99"
# Headers read to tell a folder with the slices of a volume from one with single images.
MAX_PROBED = 16


class Plane(NamedTuple):
    """Where one slice lies: position (3,) and the two unit vectors (6,), in mm LPS."""

    position: np.ndarray
    orientation: np.ndarray


def is_dicom(path):
    """Whether a file has DICOM's preamble, whatever its name; False for what cannot be opened."""
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_series(paths):
    """Whether files, all in one folder, are the slices of a volume and not single images.

    They are if two of the first share a series and have positions. Without pydicom: False.
    """
    seen = set()
    for path in paths[:MAX_PROBED]:
        header = _glance(path, "SeriesInstanceUID", "ImagePositionPatient", "NumberOfFrames")
        series = header.get("SeriesInstanceUID")
        single = str(header.get("NumberOfFrames") or 1) == "1"
        if series and header.get("ImagePositionPatient") and single:
            if series in seen:
                return True
            seen.add(series)
    return False


def patient_id(path):
    """What the header of a file, or of a file of a series' folder, calls its patient, or ""."""
    if path.is_dir():
        path = next((child for child in sorted(path.iterdir()) if is_dicom(child)), path)
    if not is_dicom(path):
        return ""
    header = _glance(path, "PatientID", "PatientBirthDate")
    return f"{header.get('PatientID') or ''} {header.get('PatientBirthDate') or ''}".strip()


def _glance(path, *names):
    """Some elements of a header; nothing for a file that is broken, which reading it reports."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = _open(path, MAX_BYTES, stop_before_pixels=True, specific_tags=list(names))
            return {name: header.get(name) for name in names}
    except Exception:  # broken files raise nearly anything
        return {}


def read_dicom(path, slice_axis, max_bytes):
    """(image, `Geometry`) of one file; several frames are a volume of axes (row, column, frame)."""
    header = _open(path, max_bytes)
    frames = int(header.get("NumberOfFrames") or 1)
    samples = int(header.get("SamplesPerPixel", 1))
    shape = (int(header.Rows), int(header.Columns), frames)
    check_shape(path, shape)
    check_size(path, math.prod(shape) * samples * _depth(header), max_bytes)
    _check_frames(path, header)
    if frames > 1:
        if samples > 1:
            raise InputError(
                path,
                found=f"{frames} colour frames",
                expected="grey frames, or one colour image",
                remedy="Save the frames as single images.",
            )
        return _multi_frame(path, header, slice_axis)
    image = header.pixel_array
    if samples == 1:
        image = _grey(path, header, image, _rescale(header))
    spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing") or (1, 1)
    image = image if image.ndim == 3 else image[..., None]
    return image, Geometry(plausible(map(float, spacing)), path=path)


def read_series(folder, paths, slice_axis, max_bytes):
    """(image, `Geometry`) of the DICOM files of a folder: one volume, sorted by position.

    The array has the axes (row, column, slice), and the affine belongs to it.
    Raises: InputError for more than one series, differing sizes or orientations, a position that
    occurs twice, or a gap where slices are missing.
    """
    slices = [_slice_header(path, max_bytes) for path in paths]
    series = {str(header.get("SeriesInstanceUID")) for header in slices}
    if len(series) > 1:
        raise InputError(
            folder,
            found=f"{len(series)} DICOM series",
            expected="one series per folder",
            remedy="Put each series into a folder of its own; leave out scouts and reports.",
        )
    for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        first = slices[0].get(name)
        for path, header in zip(paths, slices, strict=True):
            if not _same(header.get(name), first):
                raise InputError(
                    path,
                    found=f"{name} {header.get(name)}",
                    expected=f"{first}, as in {paths[0].name}",
                    remedy="Leave the file out, or put it into a folder of its own.",
                )
    shape = (int(slices[0].Rows), int(slices[0].Columns), len(paths))
    check_shape(folder, shape)
    transforms = [_rescale(header) for header in slices]
    scaled = any(transform != (1, 0) for transform in transforms)
    depth = 4 if scaled else max(_depth(header) for header in slices)
    check_size(folder, math.prod(shape) * depth, max_bytes)
    order, first_plane, step = sort_series(folder, paths, slices)
    volume = None
    for index, at in enumerate(order):
        header = _open(paths[at], max_bytes)
        _check_frames(paths[at], header)
        image = _grey(paths[at], header, header.pixel_array, transforms[at], scaled=scaled)
        if volume is None:
            volume = np.empty(shape, image.dtype)
        if image.dtype != volume.dtype or image.shape != shape[:2]:
            raise unreadable(paths[at], f"{image.dtype} values, unlike the slices before")
        volume[..., index] = image
    affine = _affine(first_plane, slices[0].PixelSpacing, step)
    return oriented(folder, volume, affine, slice_axis)


def sort_series(folder, paths, headers):
    """The order in which slices become a volume, the first `Plane`, and the step (3,) in mm LPS.

    Raises: InputError as `read_series`, for what positions and orientations tell.
    """
    planes = [_plane(folder, header, header) for header in headers]
    order, step = _sort(folder, planes, [path.name for path in paths])
    return order, planes[order[0]], step


def _multi_frame(path, header, slice_axis):
    frames = int(header.NumberOfFrames)
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    own = header.get("PerFrameFunctionalGroupsSequence") or [None] * frames
    if len(own) != frames:
        raise unreadable(path, f"{len(own)} descriptions of {frames} frames")

    def group(frame, name):
        for holder in (own[frame], shared):
            found = holder.get(name) if holder is not None else None
            if found:
                return found[0]
        return header

    measures = [group(frame, "PixelMeasuresSequence") for frame in range(frames)]
    transforms = [
        _rescale(group(frame, "PixelValueTransformationSequence")) for frame in range(frames)
    ]
    scaled = any(transform != (1, 0) for transform in transforms)
    pixels = header.pixel_array
    images = [
        _grey(path, header, image, transform, scaled=scaled)
        for image, transform in zip(pixels, transforms, strict=True)
    ]
    spacing = measures[0].get("PixelSpacing") or (1, 1)
    placed = [group(frame, "PlanePositionSequence") for frame in range(frames)]
    if all(position is not header for position in placed):
        planes = [
            _plane(path, position, group(frame, "PlaneOrientationSequence"))
            for frame, position in enumerate(placed)
        ]
        names = [f"frame {frame + 1}" for frame in range(frames)]
        order, step = _sort(path, planes, names)
        affine = _affine(planes[order[0]], spacing, step)
    else:
        thick = measures[0].get("SpacingBetweenSlices") or measures[0].get("SliceThickness") or 1
        order = range(frames)
        affine = np.diag([*(float(mm) for mm in spacing), float(thick), 1.0])
    return oriented(path, np.stack([images[at] for at in order], axis=-1), affine, slice_axis)


def _pydicom(path):
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            path,
            found="a DICOM file, but pydicom is not installed",
            expected="the optional DICOM reader",
            remedy="Run: pip install 'caal_jax[dicom]'.",
        ) from error
    return pydicom


def _open(path, max_bytes, **options):
    """The data set of a file, its pixels not decoded yet."""
    pydicom = _pydicom(path)
    check_size(path, path.stat().st_size, max_bytes)
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DEFLATED:
        data = path.read_bytes()
        # 128 bytes of preamble, DICM, and the group length element in front of what it counts.
        body = data[144 + int(meta.FileMetaInformationGroupLength) :]
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        check_size(path, len(stream.decompress(body, max_bytes + 1)), max_bytes)
    return pydicom.dcmread(path, **options)


def _slice_header(path, max_bytes):
    header = _open(path, max_bytes, stop_before_pixels=True)
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1 or int(header.get("SamplesPerPixel", 1)) != 1:
        raise InputError(
            path,
            found="several frames or colours in a slice of a series",
            expected="one grey slice per file",
            remedy="Put the file into a folder of its own.",
        )
    return header


def _depth(header):
    """Bytes of a stored value."""
    return max(int(header.BitsAllocated) // 8, 1)


def _same(one, other):
    if one is None or other is None:
        return one is other
    return np.allclose(np.float64(one), np.float64(other), rtol=1e-3, atol=1e-3)


def _plane(path, position, orientation):
    position = position.get("ImagePositionPatient")
    orientation = orientation.get("ImageOrientationPatient")
    if not position or not orientation:
        raise unreadable(path, "a slice without position and orientation")
    return Plane(np.array(position, np.float64), np.array(orientation, np.float64))


def _sort(path, planes, names):
    """The order of slices along their normal, and the vector in mm from one to the next."""
    orientation = planes[0].orientation
    normal = np.cross(orientation[:3], orientation[3:])
    if any(not _same(plane.orientation, orientation) for plane in planes):
        raise unreadable(path, "slices of different orientations")
    depths = np.array([plane.position @ normal for plane in planes])
    if not np.isfinite(depths).all():
        raise unreadable(path, "positions that are no numbers")
    order = np.argsort(depths, kind="stable")
    gaps = np.diff(depths[order])
    usual = float(np.median(gaps))
    if gaps.min() <= 1e-3:
        at = int(gaps.argmin())
        raise InputError(
            path,
            found=f"{names[order[at]]} and {names[order[at + 1]]} at the same position",
            expected="one slice per position",
            remedy="Keep one time point, echo or reconstruction per folder.",
        )
    if gaps.max() > 1.5 * usual:
        at = int(gaps.argmax())
        raise InputError(
            path,
            found=f"a gap of {gaps[at]:.4g} mm between {names[order[at]]} and "
            f"{names[order[at + 1]]}, with {usual:.4g} mm elsewhere: about "
            f"{max(round(gaps[at] / usual) - 1, 1)} missing slice(s)",
            expected="evenly spaced slices",
            remedy="Copy the missing slices, or leave the series out.",
        )
    # From end to end, so that a tilted gantry's shear is kept.
    step = (planes[order[-1]].position - planes[order[0]].position) / (len(planes) - 1)
    return order, step


def _affine(plane, spacing, step):
    rows, columns = (float(mm) for mm in spacing)
    affine = np.eye(4)
    affine[:3, 0] = rows * plane.orientation[3:]  # one row down
    affine[:3, 1] = columns * plane.orientation[:3]  # one column on
    affine[:3, 2], affine[:3, 3] = step, plane.position
    affine[:2] *= -1
    return affine


def _rescale(header):
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))


def _grey(path, header, image, transform, *, scaled=None):
    """Stored values to output values, high being bright; float32 if `scaled` or any transform."""
    photometric = header.PhotometricInterpretation
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(
            path,
            found=f"the photometric interpretation {photometric}",
            expected="MONOCHROME1, MONOCHROME2 or RGB",
            remedy="Convert the file to grey values.",
        )
    if header.get("ModalityLUTSequence"):
        raise InputError(
            path,
            found="a table of output values (ModalityLUTSequence)",
            expected="values as they are stored, or RescaleSlope and RescaleIntercept",
            remedy="Save the values after the table, as pydicom's apply_modality_lut gives them.",
        )
    if photometric == "MONOCHROME1":
        # The sum of the smallest and largest storable value; the type's width holds the result.
        ends = -1 if header.PixelRepresentation else 2 ** int(header.BitsStored) - 1
        image = (ends - image.astype(np.int64)).astype(image.dtype)
    slope, intercept = transform
    if scaled or transform != (1, 0):
        return (image * slope + intercept).astype(np.float32)
    return image


def _check_frames(path, header):
    """Refuses a compressed frame that declares another size than the data set around it.

    Decoders allocate what the frame declares, and a few bytes can declare 65535 x 65535.
    """
    if not header.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    frames = int(header.get("NumberOfFrames") or 1)
    wanted = (int(header.Rows), int(header.Columns))
    for frame in _pydicom(path).encaps.generate_frames(header.PixelData, number_of_frames=frames):
        size = _frame_size(frame)
        if size not in (wanted, None):
            raise unreadable(
                path, f"a frame of {times(size)} in an image of {times(wanted)} pixels"
            )


def _frame_size(frame):
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 frame declares; None for other codings."""
    if frame.startswith(b"\xff\x4f\xff\x51"):
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left
    at = 2
    while frame.startswith(b"\xff\xd8") and at + 9 <= len(frame):
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        # Start of frame, in the numbers that are not tables; 0xF7 is that of JPEG-LS.
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return struct.unpack_from(">HH", frame, at + 5)
        at += 2 + length
    return None
