"""What every reader does with the array of a file: limits before, axes and types after."""

import zlib

import nibabel as nib
import numpy as np

from caal_jax.data.case import Geometry
from caal_jax.errors import InputError

MAX_BYTES = 2**31


def times(shape):
    """A shape in words: 512 x 512 x 90."""
    return " x ".join(str(int(side)) for side in shape)


def check_size(path, num_bytes, max_bytes):
    """Refuses an image that would take more than `max_bytes` once decoded."""
    if num_bytes > max_bytes:
        raise InputError(
            path,
            found=f"an image of {num_bytes} bytes",
            expected=f"at most {max_bytes}",
            remedy="Crop or downscale it; if the file is small, its header is probably broken.",
        )


def check_shape(path, shape):
    """Refuses a header that declares no voxels at all."""
    if not shape or min(shape) < 1:
        raise unreadable(path, f"a header that declares the size {times(shape)}")


def unreadable(path, found):
    """The `InputError` of a file that is not what its name says."""
    return InputError(
        path,
        found=found,
        expected="a complete image file",
        remedy="Copy or export the file again, or leave it out.",
    )


def inflate(path, data, num_bytes):
    """Decompresses a zlib or gzip stream that must hold `num_bytes`, and never allocates more."""
    stream = zlib.decompressobj(wbits=47)
    values = stream.decompress(data, num_bytes)
    # The checksum is compared at the end of the stream only.
    more = stream.decompress(stream.unconsumed_tail, 1)
    if len(values) != num_bytes or more or not stream.eof:
        found = f"{len(values)}{' or more' * bool(more)} bytes"
        raise unreadable(path, f"{found} where its header declares {num_bytes}")
    return values


def oriented(path, array, affine, slice_axis):
    """The array of a file, (H, W) or a volume, as a case has it: (image, `Geometry`).

    array: axes after the third must have length 1. affine: (4, 4), array indices to mm (RAS), or
    None. slice_axis: of a volume, comes first.
    """
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise InputError(
            path,
            found=f"{array.ndim} dimensions, {times(array.shape)}",
            expected="an image or a volume (2 or 3 dimensions)",
            remedy="Save one time point or channel per file.",
        )
    sizes = np.ones(3) if affine is None else nib.affines.voxel_sizes(affine)
    spacing = list(plausible(sizes[: array.ndim]))
    if array.ndim == 2:
        slice_axis = None
    else:
        array = np.moveaxis(array, slice_axis, 0)
        spacing.insert(0, spacing.pop(slice_axis))
    return array[..., None], Geometry(tuple(spacing), slice_axis, affine, path)


def plausible(spacing_mm):
    """Spacings as a tuple of floats; 1 for what is no size of a pixel, from 1 nm to 1 km."""
    return tuple(float(mm) if 1e-6 < mm < 1e6 else 1.0 for mm in spacing_mm)


def native(path, image):
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
