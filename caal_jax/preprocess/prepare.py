"""Raw intensities of one slice to the image that tasks and networks see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from caal_jax.preprocess.equalise import equalize_foreground, equalize_hist
from caal_jax.preprocess.intensity import foreground, rescale


class Prepared(NamedTuple):
    """image: (H, W, C) float32 in [0, 1]; foreground: (H, W, 1) bool."""

    image: jax.Array
    foreground: jax.Array


def prepare(raw, low, high, *, equalise, equalise_foreground, foreground_threshold):
    """Rescales, finds the foreground and, if asked, equalises the histogram.

    raw: (H, W, C), any real dtype; low, high: the case's robust intensity range, scalars.
    equalise: one of `guidance.WAYS`, of which "preprocess" alone changes the image here. With
    equalise_foreground the histogram is that of the foreground and the background becomes 0.
    Returns `Prepared`.
    """
    image = rescale(raw, low, high)
    mask = foreground(image, threshold=foreground_threshold)
    if equalise == "preprocess":
        image = equalize_foreground(image, mask) if equalise_foreground else equalize_hist(image)
    return Prepared(jnp.asarray(image, jnp.float32), mask)
