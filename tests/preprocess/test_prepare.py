"""Raw slices to the images that networks see."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from skimage import exposure

from caal_jax.preprocess.prepare import prepare, prepare_volume


@pytest.fixture(scope="module")
def raw():
    ramp = np.linspace(0, 4000, 32 * 32).reshape(32, 32, 1)
    ramp[:10] = 0
    return ramp.astype(np.uint16)


def options(**changes):
    plain = {"equalise": "none", "equalise_foreground": False, "foreground_threshold": 0.05}
    return plain | changes


def test_without_equalisation_it_only_rescales(raw):
    found = prepare(raw, 1000.0, 3000.0, **options())
    assert_allclose(found.image, np.clip((raw - 1000.0) / 2000.0, 0, 1), atol=1e-6)
    assert found.image.dtype == np.float32


def test_global_equalisation_is_that_of_skimage(raw):
    plain = prepare(raw, 0.0, 4000.0, **options()).image
    found = prepare(raw, 0.0, 4000.0, **options(equalise="preprocess"))
    assert_allclose(
        found.image[..., 0], exposure.equalize_hist(np.asarray(plain)[..., 0]), atol=1e-5
    )


def test_foreground_equalisation_keeps_the_background_black(raw):
    found = prepare(raw, 0.0, 4000.0, **options(equalise="preprocess", equalise_foreground=True))
    inside = np.asarray(found.foreground)
    assert 0.3 < inside.mean() < 0.8
    assert_array_equal(np.asarray(found.image)[~inside], 0)
    # Flat: a tenth of the foreground in each tenth of the range.
    counts, _ = np.histogram(np.asarray(found.image)[inside], bins=10, range=(0, 1))
    assert counts.min() > 0.8 * inside.sum() / 10


def test_batches_are_vmapped_and_jitted(raw):
    low, high = np.array([0.0, 1000.0]), np.array([4000.0, 3000.0])
    batch = jax.jit(jax.vmap(lambda *args: prepare(*args, **options(equalise="preprocess"))))(
        np.stack([raw, raw]), low, high
    )
    for number in range(2):
        one = prepare(raw, low[number], high[number], **options(equalise="preprocess"))
        assert_allclose(batch.image[number], one.image, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{}, {"equalise": "preprocess"}, {"equalise": "preprocess", "equalise_foreground": 1}],
)
def test_a_volume_is_prepared_on_the_host_as_on_the_device(changes):
    # Grey levels that float16 holds exactly, and a threshold that no mean of 125 of them hits.
    raw = np.random.default_rng(0).integers(0, 256, (9, 11, 10, 1)).astype(np.int16)
    raw[:, :5] = 0
    how = options(foreground_threshold=0.3003, **changes)
    found = prepare_volume(raw, 0.0, 256.0, **how)
    wanted = jax.jit(lambda raw: prepare(raw, 0.0, 256.0, **how))(raw)
    assert_array_equal(found.foreground, wanted.foreground)
    assert 0.2 < found.foreground.mean() < 0.8
    assert found.image.dtype == np.float16
    assert_allclose(found.image, wanted.image, atol=1e-3)
