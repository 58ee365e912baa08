"""Histogram equalisation as OpenCV does it: integers in, the same integers out."""

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.errors import InputError
from caal_jax.preprocess.equalise import each_channel
from caal_jax.preprocess.histogram import count, one_by_one, take
from caal_jax.preprocess.tiles import Axis, surrounding_values, tile_histograms


def equalize_hist_opencv(image):
    """Flattens the grey-level histogram, each channel alone.

    image: (H, W), (H, W, C) or (D, H, W, C), uint8 or uint16. Returns the same shape and type:
    the darkest level that occurs becomes 0, the brightest the type's largest; an image of one
    level stays as it is.

    Reference: cv2.equalizeHist, equal in every pixel; it takes uint8 alone, for uint16 the same
    formula is applied to 65536 levels.
    """
    image = jnp.asarray(image)
    _check_type(image)
    return each_channel(_equalise, None, image)


def clahe_opencv(image, *, clip_limit=40.0, tile_grid=(8, 8)):
    """Equalises each tile by its own histogram, cut at a limit, and mixes neighbouring mappings.

    image: (H, W) or (H, W, C), uint8 or uint16, each channel alone; returns the same.
    clip_limit: the largest count in a bin over the mean count, 0 for no limit; tile_grid: number
        of tiles across and down (x, y).
    A uint16 image takes about 50 MB while it is worked on, a table of 65536 levels for each tile.

    Paper: Zuiderveld, Contrast limited adaptive histogram equalization, Graphics Gems IV, 1994.
    Reference: cv2.createCLAHE(clip_limit, tile_grid).apply.
    """
    image = jnp.asarray(image)
    _check_type(image)
    if image.ndim not in (2, 3) or min(tile_grid) < 1:
        raise InputError(
            "image and tile_grid",
            found=f"shape {image.shape} and {tile_grid}",
            expected="(H, W) or (H, W, C) and two positive numbers",
            remedy="Lift the function over batches and slices with jax.vmap.",
        )
    # An axis that is divisible grows by a whole row of pixels per tile where the other is not.
    (across, down), shape = tile_grid, image.shape[:2]
    divisible = shape[0] % down == 0 and shape[1] % across == 0
    axes = [
        _axis(n, n // number + (not divisible), number)
        for n, number in zip(shape, (down, across), strict=True)
    ]

    @one_by_one
    def equalise(channel):
        return _adapt(channel, axes, clip_limit)

    return equalise(image) if image.ndim == 2 else jax.vmap(equalise, -1, -1)(image)


def _check_type(image):
    if image.dtype not in (jnp.uint8, jnp.uint16):
        raise InputError(
            "image",
            found=str(image.dtype),
            expected="uint8 or uint16",
            remedy="Use equalize_hist or equalize_adapthist for other types.",
        )


def _equalise(levels, _):  # (N,) unsigned -> (N,)
    top = np.iinfo(levels.dtype).max
    index = levels.astype(jnp.uint32)
    histogram = count(index, None, int(top) + 1)
    darkest = histogram[jnp.argmax(histogram > 0)]
    left = len(levels) - darkest
    scale = np.float32(top) / jnp.maximum(left, 1).astype(jnp.float32)
    above = (jnp.cumsum(histogram) - darkest).astype(jnp.float32)
    table = jnp.round(jnp.maximum(above, 0) * scale).astype(levels.dtype)
    same = jnp.arange(int(top) + 1, dtype=levels.dtype)
    return take(jnp.where(left > 0, table, same), index)


def _axis(length, size, number):
    place = np.arange(length, dtype=np.float32) * (np.float32(1) / np.float32(size))
    place -= np.float32(0.5)
    before = np.floor(place)
    return Axis(length, size, number, before.astype(int) + 1, place - before)


def _adapt(image, axes, clip_limit):  # (H, W) unsigned
    top = int(np.iinfo(image.dtype).max)
    pixels = axes[0].size * axes[1].size
    histograms = tile_histograms(image, axes, top + 1)
    if clip_limit > 0:
        histograms = _clip(histograms, max(int(clip_limit * pixels / (top + 1)), 1))
    cumulative = jnp.cumsum(histograms, axis=-1).astype(jnp.float32)
    maps = jnp.round(cumulative * (np.float32(top) / np.float32(pixels)))
    maps = jnp.minimum(maps, top).astype(image.dtype)

    values = surrounding_values(maps, image, axes, 8 * image.dtype.itemsize)
    values = [value.astype(jnp.float32) for value in values]
    for axis in (1, 0):
        weight = axes[axis].weight.reshape((1, -1) if axis else (-1, 1))
        weight = jnp.broadcast_to(weight, image.shape)
        values = [
            a * (1 - weight) + b * weight for a, b in zip(values[::2], values[1::2], strict=True)
        ]
    return jnp.round(values[0]).astype(image.dtype)


def _clip(histograms, limit):
    """Cuts at the limit and spreads what was cut evenly, in one pass, over (..., bins)."""
    num_bins = histograms.shape[-1]
    excess = jnp.sum(jnp.maximum(histograms - limit, 0), axis=-1, keepdims=True)
    left = excess % num_bins
    step = jnp.maximum(num_bins // jnp.maximum(left, 1), 1)
    bin_number = jnp.arange(num_bins).reshape((1,) * (histograms.ndim - 1) + (-1,))
    extra = (bin_number % step == 0) & (bin_number // step < left)
    return jnp.minimum(histograms, limit) + excess // num_bins + extra
