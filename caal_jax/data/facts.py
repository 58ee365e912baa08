"""What is known of a whole case before its slices are cut: intensities, channels, foreground."""

from typing import NamedTuple

import cv2
import numpy as np

from caal_jax.errors import InputError

# Percentiles of more values than this come from an even subsample of about as many.
MAX_RANGE_VALUES = 2**20
FOREGROUND_LEVEL = 0.05
# Kept as they are until the device converts them.
RAW_TYPES = tuple(map(np.dtype, (np.uint8, np.uint16, np.int16)))


def intensity_range(image):
    """Robust (low, high) of a whole case: percentiles 0.5 and 99.5 over everything in it.

    image: any shape and real type, finite. Falls back to the minimum and maximum where the
    percentiles coincide (mostly background); low == high only for a constant image. Large
    volumes are subsampled evenly.
    """
    values = image.reshape(-1)
    # An odd step, since a power of two would visit the same few columns of every row.
    sample = values[:: (values.size // MAX_RANGE_VALUES) | 1]
    low, high = _percentiles(sample, np.array((0.5, 99.5)))
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)


def _percentiles(sample, percents):
    """`np.percentile` to the last bit; integers of 8 and 16 bits are counted instead of sorted."""
    if sample.dtype not in RAW_TYPES:
        return np.percentile(sample, percents)
    kind = np.iinfo(sample.dtype)
    counted = np.ascontiguousarray(sample)
    if kind.min < 0:
        counted = counted.view(np.uint16) ^ 2**15  # the same order from 0 on
    size = kind.max - kind.min + 1
    up_to = np.cumsum(cv2.calcHist([counted], [0], None, [size], [0, size]), dtype=np.int64)
    places = percents / 100 * (sample.size - 1)
    before = np.floor(places).astype(np.int64)
    ranks = np.minimum([before, before + 1], sample.size - 1)
    below, above = np.searchsorted(up_to, ranks, side="right") + kind.min
    share = places - before
    # NumPy interpolates from the nearer end.
    near = below + (above - below) * share
    return np.where(share < 0.5, near, above - (above - below) * (1 - share))


def case_range(case, image):
    """`intensity_range` of a case's image. Raises `InputError`, naming it, if it is constant."""
    low, high = intensity_range(image)
    if low == high:
        raise InputError(
            case.geometry.path or case.case_id,
            found=f"the same value everywhere ({low:g})",
            expected="an image",
            remedy="Leave it out.",
        )
    return low, high


def match_channels(image, channels):
    """Grey to colour by repetition, colour to grey by luma; (..., C) in, (..., channels) out.

    Raises: ValueError unless both counts are 1 or 3. Reference: cv2.COLOR_RGB2GRAY.
    """
    have = image.shape[-1]
    if have == channels:
        return image
    if (have, channels) == (1, 3):
        return np.repeat(image, 3, axis=-1)
    if (have, channels) == (3, 1):
        wide = image.astype(np.float32) if image.dtype == np.int16 else image
        flat = np.ascontiguousarray(wide.reshape(-1, image.shape[-2], 3))
        grey = cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY).reshape(*image.shape[:-1], 1)
        return np.round(grey).astype(image.dtype) if image.dtype == np.int16 else grey
    raise ValueError(f"channels: cannot turn {have} into {channels}")


class SliceFacts(NamedTuple):
    """What planning a training set needs to know of a case, its pixels aside.

    range, grey_range: `intensity_range` of the whole case, and of its grey version. positions: of
    its slices, 0 to 1; 0.5 for a 2-D case. foreground: the share of each slice that lies above 5 %
    of the range; 1 for a 2-D case.
    """

    range: tuple[float, float]
    grey_range: tuple[float, float]
    positions: tuple[float, ...]
    foreground: tuple[float, ...]

    def kept(self, min_foreground):
        """Indices of the slices with enough foreground."""
        return np.flatnonzero(np.array(self.foreground) >= min_foreground)


def slice_facts(case):
    """The `SliceFacts` of a case. Raises `InputError` if it is constant or not 1 or 3 channels."""
    image = case.image
    if image.shape[-1] not in (1, 3):
        raise InputError(
            case.geometry.path or case.case_id,
            found=f"{image.shape[-1]} channels",
            expected="1 or 3",
            remedy="Save it as grey or RGB.",
        )
    low, high = case_range(case, image)
    grey_range = (low, high)
    if image.shape[-1] == 3:
        grey_range = intensity_range(match_channels(image, 1))
    foreground = np.ones(1)
    if case.is_volume:
        level = low + FOREGROUND_LEVEL * (high - low)
        foreground = (image > level).any(axis=-1).mean(axis=(1, 2))
    return SliceFacts((low, high), grey_range, slice_positions(case), tuple(foreground.tolist()))


def slice_positions(case):
    """Relative positions of a case's slices in its volume, 0 to 1; 0.5 for a 2-D case."""
    if not case.is_volume:
        return (0.5,)
    if case.positions is not None:
        return case.positions
    return tuple((np.arange(len(case.image)) / max(len(case.image) - 1, 1)).tolist())
