import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit, logit

from caal_jax.confidence.sketch import NUM_BINS, TopShareSketch, sketch, top_share_mean

RNG = np.random.default_rng(0)
SHAPE = (50, 80, 1)
MAPS = {
    "uniform": RNG.random(SHAPE),
    "skewed": expit(RNG.normal(-6, 2, SHAPE)),
    "certain": RNG.integers(0, 2, SHAPE),
    "tiny": 1e-5 * RNG.random(SHAPE),
    "constant": np.full(SHAPE, 0.37),
}
MAPS = {name: np.float32(p) for name, p in MAPS.items()}
EVERYWHERE = np.ones(SHAPE, bool)
PART = np.zeros(SHAPE, bool)
PART[10:35, 20:60] = True  # 1000 pixels

build = jax.jit(sketch)


def exact(probabilities, foreground, fraction):
    """The mean of the largest, and the smallest of them, from a sort."""
    p = np.sort(np.float64(probabilities[foreground]))[::-1]
    p = p[: max(1, round(fraction * p.size))]
    return p.mean(), p[-1]


def documented_error(border):
    """A bin's width, 0.055 in logit, around a probability."""
    border = np.clip(border, 1e-6, 1 - 1e-6)
    around = expit(logit(border) + 0.055 * np.array([-1, 1]))
    return np.abs(around - border).max() + 2e-6


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.25, 1.0])
@pytest.mark.parametrize("foreground", [EVERYWHERE, PART], ids=["everywhere", "part"])
@pytest.mark.parametrize("name", MAPS)
def test_equals_a_sort_within_the_documented_error(name, foreground, fraction):
    expected, border = exact(MAPS[name], foreground, fraction)
    found = top_share_mean(build(MAPS[name], foreground), fraction)
    assert_allclose(found, expected, rtol=1e-5, atol=documented_error(border))


@pytest.mark.parametrize("name", MAPS)
def test_the_whole_foreground_has_its_exact_mean(name):
    found = top_share_mean(build(MAPS[name], PART), 1.0)
    assert_allclose(found, np.mean(MAPS[name][PART], dtype=np.float64), rtol=1e-5)


def test_whole_bins_are_exact():
    p = np.full(SHAPE, 0.1, np.float32)
    p[0, :40] = 0.8  # one percent
    summary = build(p, EVERYWHERE)
    assert_allclose(top_share_mean(summary, 0.01), 0.8, rtol=1e-5)
    assert_allclose(top_share_mean(summary, 0.02), 0.45, rtol=1e-5)
    assert_allclose(top_share_mean(summary, 0.005), 0.8, rtol=1e-5)


def test_eager_jit_and_vmap_agree():
    maps = np.stack([MAPS["uniform"], MAPS["skewed"]])
    foregrounds = np.stack([EVERYWHERE, PART])
    many = jax.jit(jax.vmap(sketch))(maps, foregrounds)
    assert many.count.shape == many.total.shape == (2, NUM_BINS)
    together = top_share_mean(many, 0.01)
    for number in range(2):
        eager = sketch(maps[number], foregrounds[number])
        jitted = build(maps[number], foregrounds[number])
        # A value on the edge of a bin may fall to either side.
        for found in (eager, jitted):
            assert np.abs(found.count - many.count[number]).sum() <= 4
            assert_allclose(top_share_mean(found, 0.01), together[number], rtol=1e-3)


def test_sketches_merge_by_addition():
    one, other = MAPS["uniform"], MAPS["skewed"]
    merged = jax.tree.map(np.add, build(one, EVERYWHERE), build(other, EVERYWHERE))
    assert isinstance(merged, TopShareSketch)
    both, foreground = np.concatenate([one, other]), np.concatenate([EVERYWHERE, EVERYWHERE])
    for fraction in (0.001, 0.01, 1.0):
        expected, border = exact(both, foreground, fraction)
        found = top_share_mean(merged, fraction)
        assert_allclose(found, expected, rtol=1e-5, atol=documented_error(border))
    assert merged.count.sum() == both.size


def test_background_does_not_count():
    bright = np.where(PART, MAPS["skewed"], np.float32(1))
    found = top_share_mean(build(bright, PART), 0.01)
    assert_allclose(found, top_share_mean(build(MAPS["skewed"], PART), 0.01), rtol=1e-6)


def test_no_foreground_is_zero_and_one_pixel_is_itself():
    nothing = build(MAPS["uniform"], np.zeros(SHAPE, bool))
    assert top_share_mean(nothing, 0.01) == 0
    single = np.zeros(SHAPE, bool)
    single[7, 9] = True
    found = top_share_mean(build(MAPS["uniform"], single), 0.001)
    assert_allclose(found, MAPS["uniform"][7, 9, 0], rtol=1e-6)
