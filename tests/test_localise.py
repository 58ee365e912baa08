"""From a stack of slices to the score of a case."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import ndimage, signal

from caal_jax.confidence import belief as beliefs
from caal_jax.confidence.sketch import sketch
from caal_jax.defaults import training_config
from caal_jax.localise import Stack, image_scores, image_uncertainties

FRACTION = 0.02


def make_stack(depth):
    """Two samples of slices (depth, 24, 20) in (0, 1) with a disc as foreground."""
    rng = np.random.default_rng(depth)
    samples = rng.beta(0.3, 6, (2, depth, 24, 20, 1)).astype(np.float32)
    row, column = np.mgrid[:24, :20]
    disc = (row - 11) ** 2 + (column - 9) ** 2 < 8**2
    foreground = np.broadcast_to(disc, (depth, 24, 20))
    sketches = jax.vmap(jax.vmap(sketch), (0, None))(jnp.asarray(samples), foreground[..., None])
    belief = jax.tree.map(
        lambda a: np.asarray(a)[..., 0], beliefs.belief(beliefs.accumulate(samples))
    )
    return Stack(belief, foreground, samples[0], sketches)


def score(stack, smoothing):
    config = training_config()
    config.score_fraction, config.score_smoothing = FRACTION, smoothing
    return image_scores(stack, config)


def top_mean(volume, foreground):
    inside = np.sort(volume[foreground])[::-1]
    return inside[: math.ceil(FRACTION * inside.size)].mean(dtype=np.float64)


@pytest.mark.parametrize("smoothing", [0.6, 1.0, 2.5])
def test_volumes_are_smoothed_across_their_slices_alone(smoothing):
    stack = make_stack(9)
    mean = np.float64(stack.belief.mean)
    radius = int(4 * smoothing + 0.5)
    weights = signal.windows.gaussian(2 * radius + 1, smoothing)
    # The end slices repeat beyond the ends.
    padded = np.pad(mean, ((radius, radius), (0, 0), (0, 0)), mode="edge")
    literal = signal.convolve(padded, (weights / weights.sum())[:, None, None], mode="valid")
    assert_allclose(
        ndimage.gaussian_filter(mean, (smoothing, 0, 0), mode="nearest"), literal, atol=1e-12
    )
    found, _ = score(stack, smoothing)
    assert found == pytest.approx(top_mean(literal, stack.foreground), rel=1e-5)
    assert found < 0.95 * top_mean(mean, stack.foreground)


@pytest.mark.parametrize(("depth", "smoothing"), [(1, 1.0), (9, 0.0)])
def test_single_slices_and_a_smoothing_of_nothing_stay_as_they_are(depth, smoothing):
    stack = make_stack(depth)
    found, _ = score(stack, smoothing)
    assert found == pytest.approx(top_mean(stack.belief.mean, stack.foreground), rel=1e-6)


def test_the_spread_is_that_of_unsmoothed_samples():
    stack = make_stack(9)
    _, spread = score(stack, 2.0)
    _, plain = score(stack, 0.0)
    assert spread.shape == (2,)
    assert_allclose(spread, plain)
    first = stack.image[..., 0]
    # A sketch is exact but for one bin, 0.055 in logit.
    assert spread[0] == pytest.approx(top_mean(first, stack.foreground), rel=0.03)


def test_every_uncertainty_of_an_image_is_of_its_foreground():
    stack = make_stack(3)
    stack = dataclasses.replace(stack, belief=stack.belief._replace(mean=2 * stack.belief.mean))
    belief, inside = stack.belief, stack.foreground
    found = image_uncertainties(stack)
    maps = {
        "entropy": belief.predictive_entropy,
        "epistemic": belief.mutual_information,
        "aleatoric": belief.expected_entropy,
        "std": np.sqrt(belief.variance),
    }
    ways = ("mean", "top", "max", "found")
    assert list(found) == [f"{name}_{how}" for name in maps for how in ways]
    here = inside & (belief.mean >= 0.5)
    assert 0 < here.sum() < inside.sum() / 2
    for name, values in maps.items():
        assert_allclose(found[f"{name}_mean"], values[inside].mean(), rtol=1e-5)
        assert_allclose(found[f"{name}_max"], values[inside].max(), rtol=1e-6)
        assert_allclose(found[f"{name}_found"], values[here].mean(), rtol=1e-5)
