"""Windows over a volume: they cover it, their weights add up, and what they say is blended."""

import itertools
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.signal import windows as scipy_windows

from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.windows import read_patch_size, sweep, windows_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("length", "side"), [(16, 16), (17, 16), (24, 16), (61, 9), (256, 32)])
def test_windows_cover_an_axis_evenly(length, side):
    found = windows_of(length, side)
    starts = np.array([start for start, _ in found])
    assert (starts[0], starts[-1]) == (0, length - side)
    assert np.diff(starts).max(initial=0) <= side / 2 + 1  # half of it, up to rounding
    total = np.zeros(length)
    for start, weights in found:
        assert weights.min() > 0
        total[start : start + side] += weights
    assert_allclose(total, 1, atol=1e-6)


def blended(answer, volume, foreground, patch):
    """All windows at once, in float64, divided by the sum of their weights."""
    bells = [scipy_windows.gaussian(side, side / 8) for side in patch]
    weight = np.einsum("a,b,c->abc", *bells)
    starts = [
        [start for start, _ in windows_of(n, side)]
        for n, side in zip(volume.shape, patch, strict=False)
    ]
    sums, total = 0.0, np.zeros(volume.shape[:3])
    for corner in itertools.product(*starts):
        here = tuple(slice(a, a + n) for a, n in zip(corner, patch, strict=True))
        maps = np.zeros((2, *volume.shape[:3]))
        maps[(slice(None), *here)] = weight * answer(volume[here][None], None, foreground[here])[0]
        sums = sums + maps
        total[here] += weight
    return sums / total


def test_maps_are_blended_and_calls_have_one_shape():
    patch, batch = (8, 10, 9), 4
    volume = RNG.random((21, 10, 15, 1)).astype(np.float32)
    foreground = volume > 0.5
    shapes, weight = set(), 0.0

    def contrast(images, weights, inside):
        """The image, and its difference from the window's mean: windows disagree about that."""
        nonlocal weight
        if weights is not None:
            shapes.add((images.shape, weights.shape, inside.shape))
            weight += weights.sum()
        return np.stack([images, images - images.mean((1, 2, 3, 4), keepdims=True)], 1)[..., 0]

    found = np.stack(list(sweep(contrast, volume, foreground, patch, batch)), axis=1)
    assert_allclose(found[0], volume[..., 0], atol=1e-6)
    assert_allclose(found, blended(contrast, volume, foreground, patch), atol=1e-5)
    assert shapes == {((4, *patch, 1), (4, *patch), (4, *patch, 1))}
    assert weight == pytest.approx(21 * 10 * 15, rel=1e-5)  # every voxel counts once


def test_the_foreground_comes_with_its_window():
    volume = RNG.random((9, 20, 9, 1)).astype(np.float32)

    def check(images, weights, inside):
        assert_array_equal(inside, images > 0.3)
        return images[:, None, ..., 0]

    rows = list(sweep(check, volume, volume > 0.3, (8, 8, 8), 3))
    assert [row.shape for row in rows] == [(1, 20, 9)] * 9


def test_no_more_than_the_slices_of_a_patch_are_held():
    volume = np.zeros((256, 16, 16, 1), np.float32)

    def answer(images, weights, inside):
        return np.zeros((len(images), 8, 16, 16, 16), np.float32)

    tracemalloc.start()
    count = sum(1 for _ in sweep(answer, volume, volume > 0, (16, 16, 16), 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 256
    assert peak < 4 * volume.nbytes  # half of the eight maps that were made


@pytest.mark.parametrize("text", ["32", "32,32", "32,32,x", "32,32,-8", "4,32,32", "8,8,8,8", ","])
def test_a_patch_has_three_sides(text):
    config = training_config()
    config.patch_size = text
    with pytest.raises(InputError, match=r"config\.patch_size: found"):
        read_patch_size(config)


def test_a_patch_size_is_read():
    config = training_config()
    assert read_patch_size(config) is None
    config.patch_size = "8, 64,32"
    assert read_patch_size(config) == (8, 64, 32)
