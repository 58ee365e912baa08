"""The draws: their limits exactly, their distributions at a fixed seed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from caal_jax.synthesis import patches

OPTIONS = {
    "foreground": None,
    "core_fraction": 0.8,
    "half_width": (0.05, 0.2),
    "relative_to": "first",
    "share": (0.05, 0.95),
    "num_classes": None,
}


@functools.cache
def squares(shape, num_keys=10_000, **changes):
    keys = jax.random.split(jax.random.key(0), num_keys)
    options = OPTIONS | changes
    draw = jax.jit(jax.vmap(lambda key: patches.draw_square(key, shape, **options)))
    return jax.tree.map(np.asarray, draw(keys))


def uniform_over(values, expected):
    """Chi-square: every expected value occurs, none other, in equal numbers up to chance."""
    found, counts = np.unique(values, return_counts=True)
    assert_array_equal(found, expected)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_square_is_uniform_in_place_size_and_share():
    square = squares((100, 80))
    middle = (square.spans[0].start + square.spans[0].stop) // 2
    clipped = (square.spans[1].start == 0) | (square.spans[1].stop == 80)
    clipped |= (square.spans[0].start == 0) | (square.spans[0].stop == 100)
    sides = square.spans[0].stop - square.spans[0].start
    # 5 to 19 pixels half-width along the first axis, whatever the second is.
    uniform_over(sides[(middle >= 19) & (middle <= 81)] // 2, np.arange(5, 20))
    # Large squares lose their corner of the image, which moves the middle of those.
    small = sides <= 20
    uniform_over(middle[small], np.arange(10, 90))
    columns = (square.spans[1].start + square.spans[1].stop) // 2
    uniform_over(columns[small & ~clipped & (columns > 10) & (columns < 70)], np.arange(11, 70))
    assert stats.kstest(square.share, "uniform", (0.05, 0.9)).pvalue > 1e-3
    assert abs(np.corrcoef(square.share, sides)[0, 1]) < 0.03
    assert square.spans[1].start.min() == 0
    assert square.spans[1].stop.max() == 80


def test_sizes_can_follow_the_shorter_axis():
    square = squares((100, 40), relative_to="min")
    assert (square.spans[0].stop - square.spans[0].start).max() == 2 * 7


def test_classes_are_equal_steps_of_share():
    uniform_over(np.round(squares((32, 32), num_classes=5).share * 4), [1, 2, 3, 4])


def test_foreground_pixels_are_picked_alike_and_no_other():
    mask = np.zeros((9, 7), bool)
    mask[2, 1:6] = mask[3:8, 4] = mask[8, 0] = True
    uniforms = jax.random.uniform(jax.random.key(1), (10_000, 2))
    picked = np.asarray(jax.jit(jax.vmap(patches.pick_pixel, (0, None)))(uniforms, mask))
    uniform_over(picked[:, 0] * 7 + picked[:, 1], np.flatnonzero(mask))


def test_without_foreground_the_square_is_empty():
    square = jax.jit(
        lambda key: patches.draw_square(
            key, (32, 32), **OPTIONS | {"foreground": jnp.zeros((32, 32, 1), bool)}
        )
    )(jax.random.key(0))
    assert not patches.within(square.spans, (32, 32)).any()


def test_uniforms_become_integers_and_normals():
    ends = jnp.array([0.0, 1 - 2.0**-23])
    for low, high in [(0, 1), (3, 7), (10, 523)]:
        assert_array_equal(patches.pick_integer(ends, low, high), [low, high - 1])
    normal = jax.jit(patches.pick_normal)(jax.random.uniform(jax.random.key(2), (10_000,)))
    assert stats.kstest(np.asarray(normal), "norm").pvalue > 1e-3
    assert np.isfinite(patches.pick_normal(ends)).all()


def test_one_flat_draw_fills_all_shapes():
    parts = patches.draw_uniforms(jax.random.key(3), (2, 3), (), (4,))
    assert [part.shape for part in parts] == [(2, 3), (), (4,)]
    assert len(np.unique(np.concatenate([np.ravel(part) for part in parts]))) == 11


@pytest.mark.parametrize(("tolerance", "expected"), [(None, [0, 1, 1]), (0.1, [0, 0, 1])])
def test_differences_are_seen_in_steps(tolerance, expected):
    before = jnp.full((1, 3, 2), 0.55)
    after = before.at[0, 1, 0].add(0.01).at[0, 2, 1].add(0.1)
    assert_allclose(patches.differs(before, after, tolerance)[0, :, 0], expected)
