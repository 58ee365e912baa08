"""Histogram equalisation: grey levels are spread so that common ones gain contrast."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.errors import InputError
from caal_jax.preprocess.histogram import count, one_by_one, settle, take


def equalize_hist(image, *, num_bins=256, mask=None):
    """Flattens the grey-level histogram, each channel alone.

    image: (H, W), (H, W, C) or (D, H, W, C), floats of any range or 8/16-bit integers; integers
        are not binned, every level counts (`num_bins` is then without effect).
    mask: bool, the image's shape without channels (a last axis of 1 is allowed). The mapping is
        learnt from its pixels and applied to all; an empty mask gives no usable values.
    Returns float32 in (0, 1] of the image's shape: the share of pixels at or below each level,
    between bin centres by interpolation. A constant float image becomes 0.5.

    Reference: skimage.exposure.equalize_hist of each channel, float32 in; bin edges carry the
    same rounding, so that grey levels which fall exactly on an edge are counted alike.
    """
    return each_channel(lambda values, counted: _equalise(values, counted, num_bins), mask, image)


def equalize_foreground(image, mask, *, num_bins=256):
    """Equalises the body alone: its pixels make the histogram, everything else becomes 0.

    With the background in the histogram its large peak would push the whole body to high values.

    image: (H, W), (H, W, C) or (D, H, W, C), floats or 8/16-bit integers, of which every level
        counts; mask: bool, as in `equalize_hist`.
    Returns float32 of the image's shape; a channel with fewer than two distinct values inside
    the mask is returned as it was.
    """

    def equalise(values, inside):
        low, high = _limits(values, inside)
        equalised = jnp.where(inside, _equalise(values, inside, num_bins), 0.0)
        return jnp.where(low < high, equalised, values.astype(jnp.float32))

    return each_channel(equalise, mask, image)


def equalize_like(image, reference, *, num_bins=256, mask=None):
    """Maps an image as `equalize_hist` maps the reference, whose histogram alone counts.

    A corrupted image has a histogram of its own: equalised by that, every pixel would change.

    image, reference: floats of one shape, (H, W), (H, W, C) or (D, H, W, C); mask: as in
    `equalize_hist`, chooses the reference's pixels. Returns float32 in (0, 1] of that shape;
    values beyond the reference's range become what its nearest end becomes.
    """

    def equalise(values, known, counted):
        bins = _bins(known, counted, num_bins)
        shares = _shares(_bin_index(bins, known), counted, num_bins)
        return _interpolate(bins, shares, values, _bin_index(bins, values))

    return each_channel(equalise, mask, image, reference)


def each_channel(equalise, mask, *images):
    """Applies `equalise(values (N,), ..., counted (N,) or None)` to every channel of the images.

    Raises InputError unless images and mask are what the public functions ask for.
    """
    images = [jnp.asarray(image) for image in images]
    shape = images[0].shape
    if len(shape) not in (2, 3, 4) or any(image.shape != shape for image in images):
        raise InputError(
            "image",
            found=f"shape {', '.join(str(image.shape) for image in images)}",
            expected="(H, W), (H, W, C) or (D, H, W, C)",
            remedy="Lift the function over batches with jax.vmap.",
        )
    for image in images:
        if not (jnp.issubdtype(image.dtype, jnp.floating) or _is_narrow(image)):
            raise InputError(
                "image",
                found=str(image.dtype),
                expected="floats or 8/16-bit integers",
                remedy="Convert wider integers with caal_jax.preprocess.rescale.",
            )
    channels = 1 if len(shape) == 2 else shape[-1]
    pixels = [
        (image if _is_narrow(image) else image.astype(jnp.float32)).reshape(-1, channels)
        for image in images
    ]
    counted = None if mask is None else jnp.asarray(mask, bool).reshape(-1)
    if counted is not None and len(counted) != len(pixels[0]):
        raise InputError(
            "mask",
            found=f"shape {jnp.shape(mask)}",
            expected=f"one value for each pixel of an image of shape {shape}",
            remedy="Pass one mask for all channels.",
        )
    axes = (*[1] * len(pixels), None)
    return jax.vmap(one_by_one(equalise), axes, 1)(*pixels, counted).reshape(shape)


def _is_narrow(image):
    return jnp.issubdtype(image.dtype, jnp.integer) and image.dtype.itemsize <= 2


def _limits(values, counted):
    if jnp.issubdtype(values.dtype, jnp.integer):
        values = values.astype(jnp.int32)
        beyond = np.iinfo(np.int32).max
    else:
        beyond = jnp.inf
    low = jnp.min(values, where=counted, initial=beyond)
    return low, jnp.max(values, where=counted, initial=-beyond)


def _equalise(values, counted, num_bins):
    if jnp.issubdtype(values.dtype, jnp.integer):
        return _equalise_levels(values, counted)
    bins = _bins(values, counted, num_bins)
    index = _bin_index(bins, values)
    return _interpolate(bins, _shares(index, counted, num_bins), values, index)


def _equalise_levels(levels, counted):  # (N,) integers, (N,) bool or None -> (N,) float32
    limits = np.iinfo(levels.dtype)
    index = (levels.astype(jnp.int32) - limits.min).astype(jnp.uint32)
    num_levels = int(limits.max) - int(limits.min) + 1
    shares = _shares(index, counted, num_levels)
    if counted is not None:
        # Levels below the mask's range take the value of its lower end.
        low = jnp.min(index, where=counted, initial=num_levels - 1)
        index = jnp.maximum(index, low)
    return take(shares, index)


def _shares(index, counted, num_bins):
    """(num_bins,) float32: the share of counted pixels at or below each bin."""
    cumulative = jnp.cumsum(count(index, counted, num_bins))
    total = jnp.maximum(cumulative[-1], 1)
    return cumulative.astype(jnp.float32) / total.astype(jnp.float32)


class _Bins(NamedTuple):
    """`number` equal bins over [low, high], as np.histogram makes them."""

    low: jax.Array
    high: jax.Array
    number: int

    def edge(self, index):
        step = (self.high - self.low) / self.number
        rounded = _round_twice(index, step, self.low)
        return jnp.where(index == self.number, self.high, rounded)

    def centre(self, index):
        return (self.edge(index) + self.edge(index + 1)) / 2


def _bins(values, counted, num_bins):
    low, high = _limits(values, counted)
    is_constant = low == high
    half = jnp.where(is_constant, 0.5, 0.0)
    return _Bins(low - half, high + half, num_bins)


def _bin_index(bins, values):  # (N,) float32 -> (N,) uint32
    # Edges are recomputed for each pixel: that is arithmetic, which vectorises; reading them from
    # a table would not. The division may land one bin off; the edges decide, as in np.histogram.
    last = bins.number - 1
    step = (bins.high - bins.low) / bins.number
    index = jnp.clip(((values - bins.low) / step).astype(jnp.int32), 0, last)
    index -= ((values < bins.edge(index)) & (index > 0)).astype(jnp.int32)
    index += ((values >= bins.edge(index + 1)) & (index < last)).astype(jnp.int32)
    return settle(index.astype(jnp.uint32))


def _interpolate(bins, shares, values, index):
    """The polyline through (bin centre, share), flat beyond both end centres, at the values."""
    index = index.astype(jnp.int32)
    left = jnp.clip(index - (values < bins.centre(index)).astype(jnp.int32), 0, bins.number - 2)
    table_index = settle(left.astype(jnp.uint32))
    left = table_index.astype(jnp.int32)
    start = bins.centre(left)
    gap = bins.centre(left + 1) - start
    position = jnp.where(gap > 0, (values - start) / jnp.where(gap > 0, gap, 1.0), 0.0)
    below, above = take(shares, table_index), take(shares, table_index + 1)
    return below + jnp.clip(position, 0.0, 1.0) * (above - below)


def _round_twice(index, step, low):
    """low + index * step with the product rounded before the sum, as NumPy rounds it.

    XLA would fuse the two, and half of an 8-bit image's pixels can lie exactly on bin edges.
    Passing the product through integers, with a zero that the compiler cannot foresee, keeps
    them apart (optimization_barrier and reduce_precision do not).
    """
    zero = jnp.isnan(low).astype(jnp.int32)
    bits = jax.lax.bitcast_convert_type(index.astype(jnp.float32) * step, jnp.int32)
    return jax.lax.bitcast_convert_type(bits + zero, jnp.float32) + low
