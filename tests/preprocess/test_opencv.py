"""Against OpenCV."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage

from caal_jax.errors import InputError
from caal_jax.preprocess import clahe_opencv, equalize_hist_opencv

RNG = np.random.default_rng(0)
NOISE = ndimage.gaussian_filter(RNG.random((96, 104)), 2) + RNG.normal(0, 0.005, (96, 104))
IMAGE = np.clip((NOISE - NOISE.min()) / np.ptp(NOISE), 0, 1) ** 1.5
BYTES = (255 * IMAGE).astype(np.uint8)


def lift(f):
    """f eagerly, compiled, and compiled for a batch of the example beside its mirror image."""
    batched = jax.jit(jax.vmap(f))
    return {
        "eager": f,
        "jit": jax.jit(f),
        "vmap": lambda image: batched(jnp.stack([image, image[::-1]]))[0],
    }


GLOBAL, ADAPTIVE = lift(equalize_hist_opencv), lift(clahe_opencv)
IMAGES = {
    "all levels": BYTES,
    "some levels": BYTES // 3 + 20,
    "two levels": np.where(BYTES > 90, 7, 200).astype(np.uint8),
    "one level": np.full_like(BYTES, 7),
}


@pytest.mark.parametrize("way", GLOBAL)
@pytest.mark.parametrize("name", IMAGES)
def test_equalize_hist_is_that_of_opencv(way, name):
    found = GLOBAL[way](IMAGES[name])
    assert found.dtype == jnp.uint8
    assert_array_equal(found, cv2.equalizeHist(IMAGES[name]))


def test_equalize_hist_of_16_bits_is_the_same_formula():
    levels = (60000 * IMAGE).astype(np.uint16) + 300
    histogram = np.bincount(levels.ravel(), minlength=65536)
    above = np.cumsum(histogram) - histogram[levels.min()]
    expected = 65535 * above[levels] / above[-1]
    found = np.asarray(GLOBAL["jit"](levels))
    assert found.dtype == np.uint16
    assert np.abs(found - expected).max() < 0.51  # float32, as in OpenCV
    assert (found.min(), found.max()) == (0, 65535)


def near(found, expected):
    """At most one level off, and that seldom: float32 sums near one half."""
    difference = np.abs(np.asarray(found, int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.005


@pytest.mark.parametrize("way", ADAPTIVE)
def test_clahe_is_that_of_opencv(way):
    found = ADAPTIVE[way](BYTES)
    assert found.dtype == jnp.uint8
    near(found, cv2.createCLAHE(40, (8, 8)).apply(BYTES))


@pytest.mark.parametrize(("limit", "grid"), [(0, (5, 3)), (0.01, (8, 8)), (3.7, (5, 3))])
def test_clahe_options_are_those_of_opencv(limit, grid):
    clahe = jax.jit(lambda image: clahe_opencv(image, clip_limit=limit, tile_grid=grid))
    near(clahe(BYTES), cv2.createCLAHE(limit, grid).apply(BYTES))


@pytest.mark.parametrize("shape", [(17, 33), (96, 101)])
def test_clahe_of_uneven_and_small_images_is_that_of_opencv(shape):
    image = np.ascontiguousarray(BYTES[: shape[0], : shape[1]])
    near(jax.jit(clahe_opencv)(image), cv2.createCLAHE(40, (8, 8)).apply(image))


def test_clahe_of_16_bits_is_that_of_opencv():
    image = (65535 * IMAGE[:40]).astype(np.uint16)
    found = jax.jit(lambda x: clahe_opencv(x, tile_grid=(2, 3)))(image)
    assert found.dtype == jnp.uint16
    near(found, cv2.createCLAHE(40, (2, 3)).apply(image))


def test_channels_are_equalised_alone():
    image = np.stack([BYTES, BYTES[::-1] // 2], -1)
    for ours, reference in (
        (equalize_hist_opencv, cv2.equalizeHist),
        (clahe_opencv, cv2.createCLAHE(40, (8, 8)).apply),
    ):
        found = jax.jit(ours)(image)
        for channel in range(2):
            near(found[..., channel], reference(np.ascontiguousarray(image[..., channel])))


def test_other_types_are_refused():
    for equalise in (equalize_hist_opencv, clahe_opencv):
        with pytest.raises(InputError, match="float32"):
            equalise(IMAGE.astype(np.float32))
    with pytest.raises(InputError, match="tile_grid"):
        clahe_opencv(BYTES, tile_grid=(0, 8))
