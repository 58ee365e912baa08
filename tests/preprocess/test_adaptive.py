"""Against scikit-image; images are smooth, as flat areas are where ours is better by design."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage import exposure

from caal_jax.errors import InputError
from caal_jax.preprocess import equalize_adapthist

# scikit-image truncates to whole levels of 1/16383 after rounding errors of its own: a pixel may
# be one level off, and so may the smallest and the largest, by which the image is stretched.
LEVEL = 1 / 16383


def smooth(*shape):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), 1.5)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32) ** 2


IMAGE = smooth(64, 100)
CASES = {
    "float32": (IMAGE, {}),
    "narrow range": (0.4 + 0.1 * IMAGE, {}),
    "uint8": (np.uint8(250 * IMAGE), {}),
    "12-bit": (np.uint16(4095 * IMAGE), {"num_bins": 1024}),
    "int16": (np.int16(2000 * IMAGE), {}),
    "no limit": (IMAGE, {"clip_limit": 0}),
    "limit that all bins reach": (IMAGE, {"clip_limit": 0.001}),
    "few bins, uneven tiles": (IMAGE, {"kernel_size": (20, 31), "num_bins": 64}),
    "one tile": (IMAGE, {"kernel_size": 128}),
    "a row": (IMAGE[:1], {}),
    "volume": (smooth(12, 17, 20), {"kernel_size": 5}),
}


@pytest.mark.parametrize("name", CASES)
def test_matches_scikit_image(name):
    image, options = CASES[name]
    found = jax.jit(lambda x: equalize_adapthist(x, **options))(image)
    nbins = options.get("num_bins", 256)
    rest = {name: value for name, value in options.items() if name != "num_bins"}
    assert found.dtype == jnp.float32
    assert_allclose(found, exposure.equalize_adapthist(image, nbins=nbins, **rest), atol=2 * LEVEL)


def test_tiles_of_a_power_of_two_leave_no_rounding():
    image = IMAGE[:32, :32]
    expected = exposure.equalize_adapthist(image, kernel_size=8)
    assert_allclose(equalize_adapthist(image, kernel_size=8), expected, atol=1e-6)


def test_a_batch_is_its_images():
    images = np.stack([IMAGE, IMAGE[::-1] ** 2, np.roll(IMAGE, 9, 1) / 2])
    found = jax.jit(jax.vmap(equalize_adapthist))(images)
    one = jax.jit(equalize_adapthist)
    for image, equalised in zip(images, found, strict=True):
        assert_allclose(equalised, one(image), atol=1e-6)


def test_the_kernel_or_a_short_last_axis_tells_the_channels():
    image = np.stack([IMAGE, IMAGE[::-1] ** 2], -1)
    alone = np.stack([exposure.equalize_adapthist(image[..., c]) for c in range(2)], -1)
    assert_allclose(jax.jit(equalize_adapthist)(image), alone, atol=2 * LEVEL)
    # Five channels would be a volume, if the kernel did not say otherwise.
    many = np.concatenate([image, image, image[..., :1]], -1)
    kernel = [n // 8 for n in IMAGE.shape]
    found = jax.jit(lambda x: equalize_adapthist(x, kernel_size=kernel))(many)
    assert_allclose(found[..., 2:4], alone, atol=2 * LEVEL)


def test_flat_areas_stay_flat():
    flat = np.full((60, 45), 0.3, np.float32)
    half = np.where(np.arange(60)[:, None] < 30, 0.2, 0.7) + 0 * flat
    one_tile = jax.jit(lambda x: equalize_adapthist(x, kernel_size=(60, 45)))
    assert_array_equal(one_tile(flat), 1)
    assert len(np.unique(one_tile(half))) == 2


def test_unusable_input_is_refused():
    with pytest.raises(InputError, match="int32"):
        equalize_adapthist(np.zeros((4, 4), np.int32))
    for kernel_size in (0, (2,), (2, 2, 2)):
        with pytest.raises(InputError, match="kernel_size"):
            equalize_adapthist(IMAGE, kernel_size=kernel_size)
