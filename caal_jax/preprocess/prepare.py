"""Raw intensities of a slice or a volume to the image that tasks and networks see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from caal_jax.preprocess.equalise import equalize_foreground, equalize_hist
from caal_jax.preprocess.intensity import foreground, rescale


class Prepared(NamedTuple):
    """image: (H, W, C) or (D, H, W, C) in [0, 1]; foreground: its shape with one channel, bool."""

    image: jax.Array
    foreground: jax.Array


def prepare(raw, low, high, *, equalise, equalise_foreground, foreground_threshold):
    """Rescales, finds the foreground and, if asked, equalises the histogram.

    raw: (H, W, C) or (D, H, W, C), any real dtype. low, high: the case's robust intensity range,
    scalars.
    equalise: one of `guidance.WAYS`, of which "preprocess" alone changes the image here. With
    equalise_foreground the histogram is that of the foreground and the background becomes 0.
    Returns `Prepared`, the image in float32.
    """
    image = rescale(raw, low, high)
    mask = foreground(image, threshold=foreground_threshold)
    if equalise == "preprocess":
        image = equalize_foreground(image, mask) if equalise_foreground else equalize_hist(image)
    return Prepared(jnp.asarray(image, jnp.float32), mask)


def prepare_volume(raw, low, high, *, equalise, equalise_foreground, foreground_threshold):
    """`prepare` of a whole volume on the host: few programs to compile for volumes of any shape.

    raw: (D, H, W, C). Other arguments are `prepare`'s; the histogram is that of the whole volume.
    Arrays are NumPy's, the image as of `rescale_volume`.
    """
    image = rescale_volume(raw, low, high)
    brightest = image.max(axis=-1).astype(np.float32)
    inside = ndimage.uniform_filter(brightest, 5, mode="nearest") > foreground_threshold
    if equalise == "preprocess":
        image = np.float16(_equalised(image, inside, equalise_foreground))
    return Prepared(image, inside[..., None])


def rescale_volume(raw, low, high):
    """`rescale` of a volume (D, H, W, C) on the host, slice by slice: float16, half the memory."""
    image = np.empty(raw.shape, np.float16)
    for one, out in zip(raw, image, strict=True):
        out[...] = np.clip((np.float32(one) - np.float32(low)) / np.float32(high - low), 0, 1)
    return image


def _equalised(image, inside, equalise_foreground):
    # A histogram knows no places: voxels in a row, as many as the next power of two, will do.
    count = inside.size
    spare = (1 << (count - 1).bit_length()) - count
    voxels = np.pad(image.reshape(count, 1, -1), ((0, spare), (0, 0), (0, 0)))
    counted = np.pad(inside.ravel() if equalise_foreground else np.ones(count, bool), (0, spare))
    equalised = _of_foreground if equalise_foreground else _of_all
    return np.asarray(equalised(voxels, counted))[:count].reshape(image.shape)


_of_foreground = jax.jit(equalize_foreground)
_of_all = jax.jit(lambda image, mask: equalize_hist(image, mask=mask))
