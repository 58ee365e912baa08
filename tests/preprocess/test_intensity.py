import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from caal_jax.errors import InputError
from caal_jax.preprocess import foreground, rescale


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_rescale_maps_the_window_and_clips(dtype):
    image = np.array([[0, 20, 60, 100, 120]], dtype)
    batched = jax.jit(jax.vmap(rescale, (0, None, None)))
    for lifted in (rescale, jax.jit(rescale), lambda x, *ends: batched(np.stack([x, x]), *ends)[1]):
        scaled = lifted(image, 20, 100)
        assert scaled.dtype == np.float32
        assert_allclose(scaled, [[0, 0, 0.5, 1, 1]], atol=1e-7)


def test_rescale_keeps_every_16_bit_level_apart():
    levels = np.arange(65536, dtype=np.uint16)
    assert len(np.unique(rescale(levels, 0, 65535))) == 65536


def test_rescale_of_a_constant_image_is_zero():
    assert_array_equal(rescale(np.full((3, 3), 5.0), 5.0, 5.0), np.zeros((3, 3)))


@pytest.mark.parametrize("shape", [(31, 24), (13, 9, 17)])
def test_foreground_is_the_smoothed_brightest_channel(shape):
    image = np.random.default_rng(1).random((2, *shape, 3), np.float32) ** 8
    expected = [
        ndimage.uniform_filter(example.max(-1).astype(float), 5, mode="nearest") > 0.3
        for example in image
    ]
    assert 0.1 < np.mean(expected) < 0.9
    found = jax.jit(jax.vmap(lambda x: foreground(x, threshold=0.3)))(image)
    assert_array_equal(found[..., 0], expected)
    assert_array_equal(foreground(image[0], threshold=0.3), found[0])


def test_foreground_ignores_a_speck_and_asks_for_one_image():
    image = np.zeros((16, 16, 1), np.float32)
    image[8, 8] = 1.0
    assert not foreground(image).any()
    with pytest.raises(InputError, match="vmap"):
        foreground(image[None, None])
