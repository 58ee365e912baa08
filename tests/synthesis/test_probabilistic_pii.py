"""The reference form against a loop over blends, and the draws against their distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, stats

from caal_jax.errors import InputError
from caal_jax.synthesis import probabilistic_pii
from caal_jax.synthesis.poisson import blend_dst
from caal_jax.synthesis.probabilistic_pii import Draws, blend, draw, rotation

DRAWS = {
    "foreground": None,
    "core_fraction": 0.8,
    "side": (0.2, 0.35),
    "num_anomalies": (2, 4),
    "num_raters": (1, 3),
    "source_per_rater": False,
}
REFERENCE = DRAWS | {"form": "reference", "strength": (10, 19)}
PRINCIPLED = DRAWS | {"form": "principled", "strength": (0.7, 1.3)}
compiled_blend = jax.jit(blend_dst, static_argnames="mixed")


def drawn(key, shape, **options):
    return jax.tree.map(np.asarray, jax.jit(lambda key: draw(key, shape, **options))(key))


def loop(draws, target, source, style, block):
    """Every blend of every rater on its own copy of the target: (N, ..., C), anomaly numbers."""
    copies, numbers = [], []
    index = np.moveaxis(np.indices(block), 0, -1)
    for a, num_raters in enumerate(draws.num_raters):
        size = draws.side[a]
        patch = at(draws.target_corner[a], size)
        for r in range(num_raters):
            foreign = draws.source_corner[a, min(r, draws.source_corner.shape[1] - 1)]
            offset, half = index - draws.centre[a, r], draws.half_axes[a, r]
            if style == "rectangular":
                mask = np.all((offset >= -half) & (offset < half), -1)
            elif style == "circular":
                mask = np.sum(offset**2, -1) <= half[0] ** 2
            else:
                mask = np.sum((offset @ draws.turn[a, r].T / half) ** 2, -1) <= 1
            copy = target.copy()
            copy[patch] = compiled_blend(
                target[patch],
                draws.strength[a, r] * source[at(foreign, size)],
                mask[at(0 * size, size)].astype(np.float32),
                mixed=True,
            )
            copies.append(copy.astype(np.float64))
            numbers.append(a)
    return np.stack(copies), np.array(numbers)


def at(corner, size):
    return tuple(slice(first, first + n) for first, n in zip(corner, size, strict=True))


@pytest.mark.parametrize("style", ["circular", "rectangular"])
def test_reference_form_equals_the_loop_over_blends(pairs, style):
    target, source = pairs[0][0], pairs[1][0]
    key = jax.random.key(5)
    options = REFERENCE | {"source_per_rater": style == "rectangular"}
    draws = drawn(key, target.shape[:2], style=style, **options)
    copies, _ = loop(draws, target, source, style, (24, 24))
    found = jax.jit(
        lambda *args: probabilistic_pii(*args, style=style, **options | {"foreground": None})
    )(key, target, source)
    label = 10 * np.abs(copies.mean(0) - target)
    scale = np.ptp(copies)  # single blends leave [0, 1] by far: strength is 10 to 19
    assert_allclose(found.image, copies.mean(0), atol=1e-5)
    assert_allclose(found.label, label.max(-1, keepdims=True), atol=1e-5 * max(10, scale))
    assert_allclose(found.label_std, copies.std(0).max(-1, keepdims=True), atol=1e-5 * scale)
    assert label.max() > 0.2


@pytest.mark.parametrize("style", ["circular", "elliptic"])
def test_principled_form_equals_the_loop_over_blends(pairs, style):
    targets, sources, _ = pairs
    keys = jax.random.split(jax.random.key(6), 2)
    found = jax.jit(jax.vmap(lambda *args: probabilistic_pii(*args, style=style, **PRINCIPLED)))(
        keys, targets[:2], sources[:2]
    )
    for n in range(2):
        draws = drawn(keys[n], targets.shape[1:3], style=style, **PRINCIPLED)
        equals_the_loop(
            [x[n] for x in found], draws, targets[n], sources[n], style=style, block=(24, 24)
        )


def equals_the_loop(found, draws, target, source, *, style, block):
    copies, numbers = loop(draws, target, source, style, block)
    change = copies - target
    present = np.unique(numbers)
    image = target + sum(change[numbers == a].mean(0) for a in present)
    image = np.clip(image, target.min(), target.max())
    label = np.abs(image - target).max(-1, keepdims=True)
    variance = sum(change[numbers == a].var(0) for a in present).max(-1, keepdims=True)
    for x, expected in zip(found, (image, label, np.sqrt(variance)), strict=True):
        assert_allclose(x, expected, atol=1e-5)
    assert label.max() > 0.02
    untouched = ~np.any(change, (0, -1))
    assert untouched.any()
    assert_array_equal(found[0][untouched], target[untouched])
    assert not np.any(found[1][untouched])
    assert not np.any(found[2][untouched])


VOLUME = PRINCIPLED | {"side": (0.4, 0.6), "num_anomalies": (2, 2), "num_raters": (2, 2)}


@pytest.fixture(scope="module")
def volumes():
    noise = ndimage.gaussian_filter(np.random.default_rng(1).random((2, 18, 22, 20, 1)), 1.2)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def test_ellipsoids_in_volumes_equal_the_loop_over_blends(volumes):
    key, shape = jax.random.key(9), volumes.shape[1:4]
    draws = drawn(key, shape, style="elliptic", **VOLUME)
    # All blends are made with arrays of one size: the loop compiles its solve once.
    draws = draws._replace(side=np.full((2, 3), 10))
    draws = draws._replace(
        target_corner=np.minimum(draws.target_corner, np.array(shape) - 10),
        source_corner=np.minimum(draws.source_corner, np.array(shape) - 10),
    )
    options = {"style": "elliptic", "block_shape": (11, 12, 11), "clip": True}
    found = jax.jit(lambda *args: blend(*args, weighting="per_anomaly", std="rater", **options))(
        draws, *volumes
    )
    equals_the_loop(found, draws, *volumes, style="elliptic", block=(10, 10, 10))


def test_rotations_keep_lengths_and_favour_no_direction():
    for axes, numbers in ((2, 1), (3, 3)):
        uniforms = jax.random.uniform(jax.random.key(3), (4_000, numbers))
        turn = np.asarray(jax.jit(rotation)(uniforms), np.float64)
        assert_allclose(
            turn @ turn.swapaxes(1, 2), np.broadcast_to(np.eye(axes), turn.shape), atol=1e-5
        )
        assert_allclose(np.linalg.det(turn), 1, atol=1e-5)
        # Of a random unit vector each coordinate has mean 0, variance 1 / axes.
        assert np.abs(turn.mean(0)).max() < 5 / np.sqrt(axes * 4_000)
        assert_allclose((turn**2).mean(0), 1 / axes, atol=0.03)


def test_volumes_keep_their_draws_inside(volumes):
    draws = all_draws("principled", style="circular", shape=(60, 50, 40), num_keys=50)
    for corner, side in (
        (draws.target_corner, draws.side),
        (draws.source_corner, draws.side[:, :, None]),
    ):
        assert np.all(corner >= np.array([6, 5, 4]))
        assert np.all(corner + side <= np.array([54, 45, 36]))
    assert_array_equal(draws.half_axes[..., :1] + np.zeros(3), draws.half_axes)
    with pytest.raises(InputError, match="published"):
        probabilistic_pii(jax.random.key(0), *volumes, form="reference")


def two_anomalies(num_raters, strength):
    """Two patches that do not touch, with identical raters."""
    count = len(strength)
    ones = np.ones((2, count), np.float32)
    return Draws(
        num_raters=np.array([num_raters, num_raters]),
        side=np.array([[12, 12], [14, 10]]),
        target_corner=np.array([[4, 4], [30, 20]]),
        source_corner=np.array([[[10, 8]], [[20, 20]]]),
        centre=6 * np.ones((2, count, 2), np.float32),
        half_axes=3 * np.ones((2, count, 2), np.float32),
        turn=np.zeros((2, 1, 2, 2), np.float32),
        strength=ones * np.asarray(strength, np.float32),
    )


@pytest.fixture(scope="module")
def blended(pairs):
    """Compiled `blend` of the first pair for (draws, source), with both weightings."""
    target = pairs[0][0]

    def both(draws, source):
        return [
            blend(
                draws,
                target,
                source,
                style="circular",
                weighting=weighting,
                std=std,
                block_shape=(14, 14),
                clip=False,
            )
            for weighting, std in (("per_blend", "reference"), ("per_anomaly", "rater"))
        ]

    return jax.jit(both)


def test_identical_raters_leave_membership_alone(blended, pairs):
    # Each anomaly holds half of the blends: s^2 = p (1 - p) mu^2 with p = 1/2.
    per_blend, per_anomaly = blended(two_anomalies(3, [9.0, 9.0, 9.0]), pairs[1][0])
    change = np.abs(per_anomaly.image - pairs[0][0]).max(-1, keepdims=True)
    assert change.max() > 0.5
    assert_allclose(per_blend.label_std, change / 2, atol=1e-5)
    assert_allclose(per_blend.label, 10 * change / 2, atol=1e-4)
    assert_allclose(per_anomaly.label_std, 0, atol=1e-5)


def test_own_source_leaves_the_image(blended, pairs):
    draws = two_anomalies(3, [1.0, 1.0, 1.0])
    draws = draws._replace(source_corner=draws.target_corner[:, None])
    for anomaly in blended(draws, pairs[0][0]):
        assert_allclose(anomaly.image, pairs[0][0], atol=1e-6)
        assert_allclose(anomaly.label, 0, atol=1e-5)
        assert_allclose(anomaly.label_std, 0, atol=1e-6)


def test_absent_raters_have_no_say(blended, pairs):
    two = blended(two_anomalies(2, [8.0, 12.0, 500.0]), pairs[1][0])
    again = blended(two_anomalies(2, [8.0, 12.0, 3.0]), pairs[1][0])
    for found, expected in zip(jax.tree.leaves(two), jax.tree.leaves(again), strict=True):
        assert_allclose(found, expected, atol=1e-6)
    assert np.max(two[1].label_std) > 0.1


def all_draws(form, style="circular", shape=(200, 160), num_keys=700, **changes):
    options = (REFERENCE if form == "reference" else PRINCIPLED) | {
        "side": (0.05, 0.2),
        "num_anomalies": (10, 19),
        "num_raters": (1, 9),
    }
    keys = jax.random.split(jax.random.key(70), num_keys)
    options |= changes
    sample = jax.jit(jax.vmap(lambda key: draw(key, shape, style=style, **options)))
    return jax.tree.map(np.asarray, sample(keys))


def near(values, mean, std):
    """The mean is within four standard errors, the standard deviation within 5 %."""
    assert abs(np.mean(values) - mean) < 4 * std / np.sqrt(np.size(values))
    assert np.std(values) == pytest.approx(std, rel=0.05)


def uniform_over(values, expected):
    found, counts = np.unique(values, return_counts=True)
    assert_array_equal(found, expected)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_reference_draws_have_the_published_distributions():
    draws = all_draws("reference", style="rectangular")
    uniform_over((draws.num_raters > 0).sum(1), np.arange(10, 20))
    uniform_over(draws.num_raters[draws.num_raters > 0], np.arange(1, 10))
    # U{8..31} forced even, from the width alone along both axes.
    uniform_over(draws.side[..., 0], np.arange(8, 32, 2))
    uniform_over(draws.side[..., 1], np.arange(8, 32, 2))
    uniform_over(draws.strength, np.arange(10, 20))
    corner, side = draws.target_corner, draws.side
    assert np.all(corner >= side)
    assert np.all(corner + side < np.array([160, 128]))
    ten = side[..., 1] == 10
    uniform_over(corner[..., 1][ten], np.arange(10, 118))
    middle = draws.source_corner[..., 0, :] + side // 2
    uniform_over(middle[..., 0], np.arange(20, 180))
    twenty = side[..., 0] == 20
    # Truncation to whole pixels costs half a pixel and a twelfth of variance.
    near(draws.centre[twenty][..., 0], 9.5, np.sqrt((10 / 6) ** 2 + 1 / 12))
    # Widths N(10, 1) cut to even pixels: 8 or 10 within two standard deviations, else 6 or 12.
    tail = stats.norm.cdf(-2)
    near(2 * draws.half_axes[twenty][..., 0], 9.0, np.sqrt(1 + 16 * tail))


def test_principled_draws_stay_in_the_core():
    draws = all_draws("principled", style="elliptic", source_per_rater=True)
    uniform_over(draws.side[..., 0], np.arange(10, 40))
    uniform_over(draws.side[..., 1], np.arange(8, 32))
    for corner, side in (
        (draws.target_corner, draws.side),
        (draws.source_corner, draws.side[:, :, None]),
    ):
        assert np.all(corner >= np.array([20, 16]))
        assert np.all(corner + side <= np.array([180, 144]))
    # Each corner is one of a range of its own; a uniform fraction added makes them comparable.
    fraction = np.random.default_rng(0).random(draws.side.shape)
    places = np.array([160, 128]) - draws.side + 1
    position = (draws.target_corner - np.array([20, 16]) + fraction) / places
    for axis in (0, 1):
        assert stats.kstest(position[..., axis].ravel(), "uniform").pvalue > 1e-3
    side = draws.side[:, :, None]
    deviation = (draws.centre - (side - 1) / 2) / (side / 12)
    assert stats.kstest(deviation.ravel()[:20_000], "norm").pvalue > 1e-3
    near((draws.half_axes - side / 4) / (side / 24), 0.0, 1.0)
    assert np.all(draws.half_axes >= 1)
    assert stats.kstest(draws.strength.ravel()[:20_000], "uniform", (0.7, 0.6)).pvalue > 1e-3


def test_foreground_holds_the_patch_centres(pairs):
    foreground = pairs[2][0]
    draws = drawn(
        jax.random.key(8),
        foreground.shape[:2],
        style="circular",
        **PRINCIPLED | {"foreground": jnp.asarray(foreground), "num_anomalies": (19, 19)},
    )
    assert_array_equal(draws.half_axes[..., 0], draws.half_axes[..., 1])
    row, column = np.moveaxis(draws.target_corner + draws.side // 2, -1, 0)
    assert foreground[row, column, 0].all()
    assert len(set(zip(row.tolist(), column.tolist(), strict=True))) > 10


def test_all_patches_at_once_equal_one_after_the_other(pairs, monkeypatch):
    """Accelerators take the other way through `blend`; here the processor takes it too."""
    targets, sources, _ = pairs
    keys = jax.random.split(jax.random.key(6), 2)

    def both_ways():
        task = functools.partial(probabilistic_pii, style="circular", **PRINCIPLED)
        return jax.jit(jax.vmap(task))(keys, targets[:2], sources[:2])

    expected = both_ways()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    for x, y in zip(both_ways(), expected, strict=True):
        assert_allclose(x, y, atol=2e-6)
