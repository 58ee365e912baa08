"""Histogram equalisation: grey levels are spread so that common ones gain contrast."""

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.errors import InputError


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
    image = jnp.asarray(image)
    is_integer = jnp.issubdtype(image.dtype, jnp.integer)
    if is_integer and image.dtype.itemsize > 2:
        raise InputError(
            "image",
            found=str(image.dtype),
            expected="floats or 8/16-bit integers",
            remedy="Convert wider integers with caal_jax.preprocess.rescale.",
        )

    def equalise(values, counted):
        if is_integer:
            return _equalise_levels(values, counted)
        low, high = _limits(values, counted)
        return _equalise_bins(values, counted, low, high, num_bins)

    return _each_channel(equalise, image, mask)


def equalize_foreground(image, mask, *, num_bins=256):
    """Equalises the body alone: its pixels make the histogram, everything else becomes 0.

    With the background in the histogram its large peak would push the whole body to high values.

    image: (H, W), (H, W, C) or (D, H, W, C) floats; mask: bool, as in `equalize_hist`.
    Returns float32 of the image's shape; a channel with fewer than two distinct values inside
    the mask is returned as it was.
    """
    image = jnp.asarray(image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise InputError(
            "image",
            found=str(image.dtype),
            expected="floats in [0, 1]",
            remedy="Convert grey levels with caal_jax.preprocess.rescale.",
        )

    def equalise(values, inside):
        low, high = _limits(values, inside)
        equalised = _equalise_bins(values, inside, low, high, num_bins)
        return jnp.where(low < high, jnp.where(inside, equalised, 0.0), values)

    return _each_channel(equalise, image, mask)


def _each_channel(equalise, image, mask):
    """Applies `equalise(values (N,), counted (N,))` to every channel."""
    if image.ndim not in (2, 3, 4):
        raise InputError(
            "image",
            found=f"shape {image.shape}",
            expected="(H, W), (H, W, C) or (D, H, W, C)",
            remedy="Lift the function over batches with jax.vmap.",
        )
    pixels = image.reshape(-1, 1 if image.ndim == 2 else image.shape[-1])
    if jnp.issubdtype(pixels.dtype, jnp.floating):
        pixels = pixels.astype(jnp.float32)
    counted = jnp.ones(len(pixels), bool) if mask is None else jnp.asarray(mask, bool).reshape(-1)
    if len(counted) != len(pixels):
        raise InputError(
            "mask",
            found=f"shape {jnp.shape(mask)}",
            expected=f"one value for each pixel of an image of shape {image.shape}",
            remedy="Pass one mask for all channels.",
        )
    return jax.vmap(equalise, (1, None), 1)(pixels, counted).reshape(image.shape)


def _limits(values, counted):
    low = jnp.min(values, where=counted, initial=jnp.inf)
    return low, jnp.max(values, where=counted, initial=-jnp.inf)


def _equalise_levels(levels, counted):  # (N,) integers, (N,) bool -> (N,) float32
    limits = np.iinfo(levels.dtype)
    index = levels.astype(jnp.int32) - limits.min
    histogram = _count(index, counted, limits.max - limits.min + 1)
    low = jnp.min(index, where=counted, initial=len(histogram) - 1)
    # Levels outside the mask's range take the value of its nearest end.
    return _take(_cumulative(histogram), jnp.maximum(index, low))


def _equalise_bins(values, counted, low, high, num_bins):  # (N,) float32, (N,) bool -> (N,)
    is_constant = low == high
    low, high = jnp.where(is_constant, low - 0.5, low), jnp.where(is_constant, high + 0.5, high)
    step = (high - low) / num_bins

    def edge(index):
        return jnp.where(index == num_bins, high, _round_twice(index, step, low))

    def centre(index):
        return (edge(index) + edge(index + 1)) / 2

    # Edges are recomputed for each pixel: that is arithmetic, which vectorises; reading them from
    # a table would not. The division may land one bin off; the edges decide, as in np.histogram.
    index = jnp.clip(((values - low) / step).astype(jnp.int32), 0, num_bins - 1)
    index -= ((values < edge(index)) & (index > 0)).astype(jnp.int32)
    index += ((values >= edge(index + 1)) & (index < num_bins - 1)).astype(jnp.int32)
    cumulative = _cumulative(_count(index, counted, num_bins))

    # The polyline through (centre, cumulative share), flat beyond both end centres.
    left = jnp.clip(index - (values < centre(index)).astype(jnp.int32), 0, num_bins - 2)
    start = centre(left)
    gap = centre(left + 1) - start
    position = jnp.where(gap > 0, (values - start) / jnp.where(gap > 0, gap, 1.0), 0.0)
    below, above = _take(cumulative, left), _take(cumulative, left + 1)
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


# Batched scatters and gathers carry a (batch, position) pair for each pixel, which costs XLA:CPU
# more than the work itself; these two flatten a batch into one long table instead.


def _count(index, counted, num_bins):
    """How many of the counted pixels have each index; scatter-add, faster than one-hot or sort."""

    @jax.custom_batching.custom_vmap
    def count(index, counted):
        histogram = jnp.zeros(num_bins, jnp.int32)
        return histogram.at[index].add(counted.astype(jnp.int32), mode="promise_in_bounds")

    @count.def_vmap
    def _(size, is_batched, index, counted):
        index, counted = _spread(size, is_batched, index, counted)
        flat = index + num_bins * jnp.arange(size)[:, None]
        histograms = _count(flat.reshape(-1), counted.reshape(-1), num_bins * size)
        return histograms.reshape(size, num_bins), True

    return count(index, counted)


def _cumulative(histogram):
    total = jnp.sum(histogram)
    return jnp.cumsum(histogram).astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32)


@jax.custom_batching.custom_vmap
def _take(table, index):  # (K,), (N,) -> (N,)
    return table.at[index].get(mode="promise_in_bounds")


@_take.def_vmap
def _(size, is_batched, table, index):
    table, index = _spread(size, is_batched, table, index)
    flat = index + table.shape[1] * jnp.arange(size)[:, None]
    return _take(table.reshape(-1), flat.reshape(-1)).reshape(index.shape), True


def _spread(size, is_batched, *arrays):
    return [
        a if batched else jnp.broadcast_to(a, (size, *a.shape))
        for a, batched in zip(arrays, is_batched, strict=True)
    ]
