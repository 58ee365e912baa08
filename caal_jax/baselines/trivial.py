"""Bars without a single learnt weight that every table has to show.

Plain thresholding of an equalised image rivals trained auto-encoders on bright brain lesions
(Meissen et al. 2021, doi:10.48550/arXiv.2109.06540), and this project equalises its images: without
these bars a gain could be the equalisation alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from caal_jax.preprocess import equalize_foreground


class Baseline(NamedTuple):
    """A detector that learns from normal images only.

    fit(images) -> state, from normal images (N, H, W, C) float32 in [0, 1].
    predict(state, images, foreground) -> maps (N, H, W) float32, higher is more anomalous, 0
    outside the foreground (N, H, W) bool. A map depends on no other image of the batch.
    """

    name: str
    fit: Callable[[jax.Array], Any]
    predict: Callable[[Any, jax.Array, jax.Array], jax.Array]


class Template(NamedTuple):
    """Mean and standard deviation of normal images at each pixel, (H, W, C)."""

    mean: jax.Array
    std: jax.Array


def _learn_nothing(images):
    """The state of a baseline that ignores normal images."""
    del images


@jax.jit
def _grey_value(state, images, foreground):
    del state
    return jnp.where(foreground, jnp.mean(images, axis=-1), 0.0)


@jax.jit
def _equalised_grey_value(state, images, foreground):
    equalised = jax.vmap(equalize_foreground)(images, foreground)
    return _grey_value(state, equalised, foreground)


def _fit_template(images):
    return Template(jnp.mean(images, axis=0), jnp.std(images, axis=0))


@jax.jit
def _distance_to_template(state, images, foreground):
    # A pixel that never varies in training (air) would otherwise shout at any noise.
    distance = jnp.abs(images - state.mean[None]) / (state.std + 0.01)[None]
    return jnp.where(foreground, jnp.mean(distance, axis=-1), 0.0)


# Give images that are rescaled but not equalised; in [0, 1].
raw_intensity = Baseline("raw intensity", _learn_nothing, _grey_value)

# The same images; each foreground's own histogram is flattened here. In [0, 1].
equalised_intensity = Baseline("equalised intensity", _learn_nothing, _equalised_grey_value)

# |x - mean| / (std + 0.01), the mean over channels; unbounded, for images on a common grid.
mean_template = Baseline("mean template", _fit_template, _distance_to_template)
