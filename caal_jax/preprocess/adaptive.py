"""Contrast-limited adaptive histogram equalisation as scikit-image does it, in n dimensions."""

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.errors import InputError
from caal_jax.preprocess.histogram import one_by_one, take
from caal_jax.preprocess.tiles import Axis, surrounding_values, tile_histograms

NUM_LEVELS = 2**14  # the grey scale between input and output
MAX_CHANNELS = 4


def equalize_adapthist(image, *, kernel_size=None, clip_limit=0.01, num_bins=256):
    """Equalises every region by the histogram around it, with a limit to the gain of contrast.

    image: (H, W), (H, W, C), (D, H, W) or (D, H, W, C), or of more axes; finite floats, of which
        what lies outside [0, 1] is clipped, or 8/16-bit integers of any range.
    kernel_size: of a tile in pixels, one integer or one for each spatial axis; an eighth of every
        axis by default.
    clip_limit: the largest share of a tile's pixels in one bin, 0 for no limit. num_bins: 2 or
        more.
    Whether the last axis holds channels, each equalised alone, is told by the number of entries
    of kernel_size; with one integer or None, by the size of the axis: of three axes or more, a
    last one of at most 4 is channels.
    Returns float32 of the image's shape, stretched to all of [0, 1] (each channel's own range);
    a constant image becomes 1.

    Paper: Zuiderveld, Contrast limited adaptive histogram equalization, Graphics Gems IV, 1994.
    Reference: skimage.exposure.equalize_adapthist, except that colours are not taken through HSV,
    negative int16 levels are not cut off, and interpolation keeps flat areas flat where
    scikit-image's rounding may leave steps of 1/16383.
    """
    image = jnp.asarray(image)
    is_integer = jnp.issubdtype(image.dtype, jnp.integer)
    if image.ndim < 2 or (is_integer and image.dtype.itemsize > 2):
        raise InputError(
            "image",
            found=f"shape {image.shape} of {image.dtype}",
            expected="(H, W), (H, W, C), (D, H, W) or (D, H, W, C), floats or 8/16-bit integers",
            remedy="Convert wider integers with caal_jax.preprocess.rescale.",
        )
    sizes = np.asarray(0 if kernel_size is None else kernel_size)
    if sizes.ndim == 0:
        num_axes = image.ndim - (image.ndim > 2 and image.shape[-1] <= MAX_CHANNELS)
    else:
        num_axes = len(sizes)
    is_wrong = num_axes < 2 or num_axes not in (image.ndim, image.ndim - 1)
    if is_wrong or (kernel_size is not None and np.any(sizes < 1)):
        raise InputError(
            "kernel_size",
            found=str(kernel_size),
            expected=f"positive, one or one for each spatial axis of shape {image.shape}",
            remedy="Leave channels out of it.",
        )
    spatial = image.shape[:num_axes]
    if kernel_size is None:
        sizes = [max(n // 8, 1) for n in spatial]
    sizes = np.broadcast_to(sizes, num_axes)
    axes = [_axis(n, int(size)) for n, size in zip(spatial, sizes, strict=True)]

    @one_by_one
    def equalise(channel):
        return _equalise(_bins(channel, num_bins), axes, clip_limit, num_bins)

    if num_axes == image.ndim:
        return equalise(image)
    return jax.vmap(equalise, -1, -1)(image)


def _axis(length, size):
    place, inside = np.divmod(np.arange(length) + size // 2, size)
    weight = inside.astype(np.float32) / np.float32(size)
    return Axis(length, size, -(-length // size), place, weight)


def _bins(image, num_bins):
    """Grey levels stretched to 0 .. NUM_LEVELS - 1 by their own range, then put into bins."""
    if jnp.issubdtype(image.dtype, jnp.floating):
        levels = jnp.round(jnp.clip(image.astype(jnp.float32), 0, 1) * np.float32(65535))
        levels = levels.astype(jnp.int32)
    else:
        levels = image.astype(jnp.int32)
    low = jnp.min(levels)
    width = jnp.maximum(jnp.max(levels) - low, 1)
    levels -= low
    # The nearest whole number to levels * (NUM_LEVELS - 1) / width, ties to even: a pixel in the
    # wrong bin would be a visible error, so the float quotient is set right in whole numbers.
    top = NUM_LEVELS - 1
    scaled = jnp.round(levels.astype(jnp.float32) * (top / width.astype(jnp.float32)))
    scaled = scaled.astype(jnp.int32)
    twice_left = 2 * (levels * top - scaled * width)
    is_odd = scaled & 1
    scaled += (twice_left + is_odd > width).astype(jnp.int32)
    scaled -= (is_odd - twice_left > width).astype(jnp.int32)
    # XLA does not repeat a whole division for each use, which keeps it and all of the above out of
    # the look-ups, where nothing is vectorised.
    return scaled.astype(jnp.uint32) // np.uint32(1 + NUM_LEVELS // num_bins)


def _equalise(bins, axes, clip_limit, num_bins):
    pixels = int(np.prod([axis.size for axis in axes]))
    limit = max(int(clip_limit * pixels), 1) if clip_limit > 0 else pixels
    histograms = tile_histograms(bins, axes, num_bins)
    clipped = _clip(histograms.reshape(-1, num_bins), limit)
    # From counts to levels by a table, made as scikit-image makes it: in double precision, whose
    # rounding decides where the product is a whole number. Spreading may add pixels.
    levels = np.minimum(np.arange(pixels + 2) * ((NUM_LEVELS - 1) / pixels), NUM_LEVELS - 1)
    counts = jnp.minimum(jnp.cumsum(clipped, axis=-1), pixels + 1).astype(jnp.uint32)
    maps = take(jnp.asarray(levels.astype(np.int32)), counts.reshape(-1))
    maps = maps.reshape(histograms.shape)

    values = surrounding_values(maps, bins, axes, 16)
    values = [value.astype(jnp.float32) for value in values]
    for axis in reversed(range(len(axes))):
        weight = axes[axis].weight.reshape(-1, *[1] * (len(axes) - 1 - axis))
        weight = jnp.broadcast_to(weight, bins.shape)
        values = [a + weight * (b - a) for a, b in zip(values[::2], values[1::2], strict=True)]
    mixed = jnp.floor(values[0])
    low, high = jnp.min(mixed), jnp.max(mixed)
    return jnp.where(low < high, (mixed - low) / jnp.maximum(high - low, 1), 1.0)


def _clip(histograms, limit):
    """Cuts histograms (T, num_bins) at the limit and spreads what was cut over the other bins."""
    num_bins = histograms.shape[-1]
    position = jnp.arange(num_bins)[None]

    def total(counts):
        return jnp.sum(counts, axis=-1, keepdims=True)

    excess = total(jnp.maximum(histograms - limit, 0))
    histograms = jnp.minimum(histograms, limit)
    share = excess // num_bins
    filled = histograms + jnp.where(histograms < limit - share, share, 0)
    filled = jnp.where(filled >= limit - share, limit, filled)
    excess -= total(filled - histograms)

    # What is left goes, one count each, to every n-th bin below the limit, from the first bin on,
    # then from the second, and so on: few rounds, since each spreads about all of it.
    def goes_on(state):
        histograms, excess, _ = state
        return jnp.any((excess > 0) & jnp.any(histograms < limit, -1, keepdims=True))

    def spread(state):
        histograms, excess, first = state
        below = histograms < limit
        step = jnp.maximum(total(below.astype(jnp.int32)) // jnp.maximum(excess, 1), 1)
        distance = position - first
        hit = (distance >= 0) & (distance % step == 0) & below & (excess > 0)
        hit = hit.astype(jnp.int32)
        return histograms + hit, excess - total(hit), (first + 1) % num_bins

    return jax.lax.while_loop(goes_on, spread, (filled, excess, jnp.int32(0)))[0]
