"""Against scikit-image, with images whose grey levels sit exactly on bin edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from skimage import exposure

from caal_jax.errors import InputError
from caal_jax.preprocess import equalize_foreground, equalize_hist, equalize_like

RNG = np.random.default_rng(0)
SHAPE = (40, 33)

IMAGES = {
    "continuous": RNG.random(SHAPE, np.float32),
    "8-bit levels on bin edges": (RNG.integers(40, 169, SHAPE) / 255).astype(np.float32),
    "fewer levels than bins": (RNG.integers(0, 7, SHAPE) / 6).astype(np.float32),
    "large background": np.maximum(RNG.random(SHAPE, np.float32) - 0.7, 0),
    "narrow and far from zero": RNG.normal(1000, 0.01, SHAPE).astype(np.float32),
    "constant": np.full(SHAPE, 0.3, np.float32),
    "uint8": RNG.integers(3, 200, SHAPE).astype(np.uint8),
    "12-bit": RNG.integers(90, 4096, SHAPE).astype(np.uint16),
    "int16": RNG.integers(-1024, 2000, SHAPE).astype(np.int16),
}
MASK = RNG.random(SHAPE) < 0.3


def masked(image, mask):
    return equalize_hist(image, mask=mask)


def lift(f):
    """f eagerly, compiled, and compiled for a batch of the example beside its mirror image."""
    batched = jax.jit(jax.vmap(f))
    return {
        "eager": f,
        "jit": jax.jit(f),
        "vmap": lambda *args: batched(*(jnp.stack([a, a[::-1]]) for a in args))[0],
    }


LIFTED = {"all": lift(equalize_hist), "masked": lift(masked)}


@pytest.mark.parametrize("way", ["eager", "jit", "vmap"])
@pytest.mark.parametrize("name", IMAGES)
def test_matches_scikit_image(way, name):
    image = IMAGES[name]
    equalised = LIFTED["all"][way](image)
    assert equalised.dtype == jnp.float32
    assert_allclose(equalised, exposure.equalize_hist(image), atol=1e-6)
    # Few pixels make the histogram, none of them dark: others fall below its range.
    mask = MASK & (image >= np.median(image))
    expected = exposure.equalize_hist(image, mask=mask)
    assert_allclose(LIFTED["masked"][way](image, mask), expected, atol=1e-6)


def test_number_of_bins_matches_scikit_image():
    image = IMAGES["continuous"]
    assert_allclose(
        equalize_hist(image, num_bins=37), exposure.equalize_hist(image, nbins=37), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(*SHAPE, 3), (4, 10, 33, 3)])
def test_channels_are_equalised_alone(shape):
    image = RNG.random(shape, np.float32) ** np.array([1, 2, 5], np.float32)
    mask = MASK if len(shape) == 3 else None
    equalised = jax.jit(masked)(image, mask)
    for c in range(3):
        expected = exposure.equalize_hist(image[..., c], mask=mask)
        assert_allclose(equalised[..., c], expected, atol=1e-6)


def test_keeps_the_order_of_grey_levels_and_flattens_them():
    image = RNG.normal(0.3, 0.05, (128, 128)).astype(np.float32)
    equalised = np.asarray(LIFTED["all"]["jit"](image)).ravel()
    assert np.all(np.diff(equalised[np.argsort(image.ravel())]) >= 0)
    ks_distance = np.max(np.abs(np.sort(equalised) - np.arange(1, 128**2 + 1) / 128**2))
    assert ks_distance < np.histogram(image, 256)[0].max() / 128**2
    # Common levels gain contrast: for this density the mean gain is about 5.7.
    gain = np.abs(np.diff(equalised)).mean() / np.abs(np.diff(image.ravel())).mean()
    assert 4 < gain < 7


def test_foreground_alone_makes_the_histogram_and_air_stays_black():
    image = np.stack([IMAGES["continuous"], IMAGES["large background"]], -1)
    mask = image[..., 1:] > 0
    equalise = jax.jit(equalize_foreground)
    equalised = equalise(image, mask)
    expected = exposure.equalize_hist(image[..., 0], mask=mask[..., 0])
    assert_allclose(equalised[..., 0], np.where(mask[..., 0], expected, 0), atol=1e-6)
    assert_array_equal(equalised[~mask[..., 0]], 0)
    # What lies outside the mask has no influence.
    elsewhere = np.where(mask, image, 7.0).astype(np.float32)
    assert_array_equal(equalise(elsewhere, mask), equalised)


@pytest.mark.parametrize("name", ["uint8", "12-bit", "int16"])
def test_foreground_of_integers_counts_every_level(name):
    image = IMAGES[name]
    expected = np.where(MASK, exposure.equalize_hist(image, mask=MASK), 0)
    assert_allclose(jax.jit(equalize_foreground)(image, MASK), expected, atol=1e-6)


def test_a_corrupted_image_is_mapped_like_the_clean_one():
    clean = IMAGES["large background"]
    corrupted = np.clip(clean + RNG.normal(0, 0.2, SHAPE), -0.2, 0.5).astype(np.float32)
    for mask in (None, MASK):
        counted = clean if mask is None else clean[mask]
        histogram, edges = np.histogram(counted.astype(np.float64), 256)
        centres, shares = (edges[:-1] + edges[1:]) / 2, np.cumsum(histogram) / counted.size
        expected = np.interp(corrupted, centres, shares)
        found = jax.jit(equalize_like)(corrupted, clean, mask=mask)
        assert_allclose(found, expected, atol=1e-4)
    assert_array_equal(equalize_like(clean, clean), LIFTED["all"]["eager"](clean))


@pytest.mark.parametrize("pixels", [0, 1])
def test_foreground_without_two_levels_leaves_the_image(pixels):
    image = IMAGES["continuous"][..., None]
    mask = np.zeros((*SHAPE, 1), bool)
    mask.ravel()[:pixels] = True
    assert_array_equal(jax.jit(equalize_foreground)(image, mask), image)


def test_unusable_input_is_refused():
    with pytest.raises(InputError, match="int32"):
        equalize_hist(np.zeros((4, 4), np.int32))
    with pytest.raises(InputError, match="complex64"):
        equalize_foreground(np.zeros((4, 4, 1), np.complex64), np.ones((4, 4, 1), bool))
    with pytest.raises(InputError, match=r"\(5, 4\)"):
        equalize_like(np.zeros((4, 4)), np.zeros((5, 4)))
    with pytest.raises(InputError, match="mask"):
        equalize_hist(np.zeros((4, 4)), mask=np.ones((4, 5), bool))
