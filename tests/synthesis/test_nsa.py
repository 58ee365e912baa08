"""Against the peer of the benchmark, a literal restatement of the published code on grey levels."""

import inspect
import itertools
import runpy
import types
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, stats
from skimage.morphology import disk

from caal_jax.errors import InputError
from caal_jax.synthesis.nsa import (
    Draws,
    calibrate_logistic,
    draw,
    grade,
    majority,
    median_disk,
    nsa,
    objects,
    paste,
    resized,
)
from caal_jax.synthesis.nsa_presets import nsa_preset

PEER = types.SimpleNamespace(
    **runpy.run_path(Path(__file__).parents[2] / "benchmarks" / "nsa_peer.py")
)
SHAPE = (64, 48)
OPTIONS = {
    "half_width": ((0.1, 0.4), (0.1, 0.4)),
    "gamma": (2, 0.08, 0.1),
    "num_patches": 3,
    "resize": (0.7, 1.3),
    "shift": True,
    "min_object": 0.7,
    "min_overlap": 0.7,
}
KEYS = jax.random.split(jax.random.key(2), 64)
LIFTS = [lambda f: f, jax.jit, lambda f: lambda x: jax.vmap(f)(x[None])[0]]


@pytest.fixture(scope="module")
def grey(pairs):
    """uint8 target and source (64, 48, 2), each an object on black, and their object masks."""
    target, source = ((255 * x[1]).round().astype(np.uint8) for x in pairs[:2])
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    target = np.where(((row - 33) ** 2 + 2 * (column - 22) ** 2 < 30**2)[..., None], target, 3)
    source = np.where(((row - 30) ** 2 + 2 * (column - 25) ** 2 < 29**2)[..., None], source, 3)
    target, source = target.astype(np.uint8), source.astype(np.uint8)
    return target, source, [PEER.find_object(x, ((0, 20),)) for x in (target, source)]


@pytest.fixture(scope="module")
def drawn(grey):
    """Draws (64 examples, 3 patches) with object masks."""
    masks = list(map(jnp.asarray, grey[2]))
    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(lambda key: draw(key, SHAPE, *masks, **OPTIONS)))(KEYS)
    )


@pytest.fixture(scope="module")
def free():
    """Draws (1000 examples, 3 patches) without object masks."""
    keys = jax.random.split(jax.random.key(0), 1000)
    one = jax.jit(jax.vmap(lambda key: draw(key, (256, 224), None, None, **FREE)))
    return jax.tree.map(np.asarray, one(keys))


FREE = OPTIONS | {"half_width": ((0.03, 0.4), (0.03, 0.4)), "gamma": (2, 0.03, 0.05)}


def one_patch(**values):
    """Draws of one patch, the same in source and target if nothing else is said."""
    patch = {
        "present": np.array([True]),
        "source_corner": np.array([[9, 7]]),
        "source_size": np.array([[25, 20]]),
        "size": np.array([[25, 20]]),
        "corner": np.array([[30, 21]]),
        "centre": np.zeros((1, 5, 2), np.float32),
        "half_axes": np.ones((1, 5, 2), np.float32),
        "angle": np.zeros((1, 5), np.float32),
        "factor": np.float32(1),
        "mixed": np.bool_(True),
    }
    return Draws(**{name: jnp.asarray(x) for name, x in (patch | values).items()})


def pasted(draws, target, source, masks=(None, None), *, outline="rectangle", blend="normal"):
    target, source = (jnp.asarray(x, jnp.float32) for x in (target, source))
    masks = [None if m is None else jnp.asarray(m) for m in masks]
    made = jax.jit(paste, static_argnames=("block_shape", "outline", "blend"))(
        draws, target, source, *masks, block_shape=(30, 24), outline=outline, blend=blend
    )
    return [np.asarray(x) for x in made]


@pytest.mark.parametrize("blend", ["normal", "mixed"])
def test_clone_equals_the_published_one_to_the_grey_level(grey, blend):
    target, source, masks = grey
    draws = one_patch()
    image, mask = pasted(draws, target / 255, source / 255, masks, blend=blend)
    expected, expected_mask = PEER.add_patch(
        target,
        source,
        masks,
        *(np.asarray(x)[0] for x in (draws.source_corner, draws.source_size, draws.size)),
        np.asarray(draws.corner)[0],
        mixed=blend == "mixed",
    )
    # OpenCV cuts down to whole grey levels.
    error = 255 * image - expected
    assert error.min() > -0.01
    assert error.max() < 1.01
    assert np.abs(expected.astype(int) - target).max() > 20
    assert_array_equal(mask[..., 0], expected_mask)


def test_later_patches_are_blended_into_earlier_ones(grey, drawn):
    target, source, masks = grey
    several = np.flatnonzero(drawn.present.sum(1) == 3)[:2]
    assert len(several) == 2
    for n in several:
        draws = jax.tree.map(lambda x, n=n: x[n], drawn)
        draws = draws._replace(factor=np.float32(1))
        image, mask = pasted(draws, target / 255, source / 255, masks)
        expected, union = target, np.zeros(SHAPE, bool)
        for a in range(3):
            sides = draws.source_corner[a], draws.source_size[a], draws.size[a], draws.corner[a]
            expected, piece = PEER.add_patch(expected, source, masks, *sides, mixed=False)
            union |= piece
        # The published code rounds the resized patch and each of the clones.
        assert_allclose(255 * image, expected, atol=6)
        assert np.abs(255 * image - expected).mean() < 1
        assert np.mean(mask[..., 0] != union) < 0.002


def test_swap_is_opencvs_resize_and_uniform_a_mean(pairs):
    target, source = pairs[0][2], pairs[1][2]
    draws = one_patch(size=np.array([[18, 23]]), factor=np.float32(0.3))
    foreign = cv2.resize(source[9:34, 7:27], (23, 18))
    for blend, factor in (("swap", 1.0), ("uniform", 0.3)):
        expected = target.copy()
        expected[30:48, 21:44] += factor * (foreign - expected[30:48, 21:44])
        image, mask = pasted(draws, target, source, blend=blend)
        assert_allclose(image, expected, atol=1e-5)
        assert_array_equal(mask[30:48, 21:44], True)
        assert mask.sum() == 18 * 23


def test_weak_clones_move_less(pairs):
    target, source = pairs[0][2], pairs[1][2]
    image, _ = pasted(one_patch(), target, source)
    for factor in (0.25, 0.5):
        weak, _ = pasted(one_patch(factor=np.float32(factor)), target, source)
        assert_allclose(weak - target, factor * (image - target), atol=1e-5)


def test_ellipses_turn_and_unite(pairs):
    target, source = pairs[0][2], pairs[1][2]
    ellipses = {
        "centre": np.array([[[12, 10], [3, 4], [20, 14], [3, 4], [3, 4]]], np.float32),
        "half_axes": np.array([[[8, 2], [2, 2], [3, 5], [2, 2], [2, 2]]], np.float32),
        "angle": np.array([[0.6, 0, 1, 0, 0]], np.float32),
    }
    _, mask = pasted(one_patch(**ellipses), target, source, outline="ellipses")
    expected = np.zeros((25, 20), bool)
    row, column = np.mgrid[:25, :20]
    for (y, x), half, angle in zip(*(e[0] for e in ellipses.values()), strict=True):
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        along, across = np.tensordot(turn, [row - y, column - x], 1)
        expected |= (along / half[0]) ** 2 + (across / half[1]) ** 2 <= 1
    assert_array_equal(mask[30:55, 21:41, 0], expected)
    assert mask.sum() == expected.sum()


def test_tiny_clones_are_left_out(pairs):
    target, source = pairs[0][2], pairs[1][2]
    for size, changes in (((9, 9), False), ((12, 12), True)):
        image, mask = pasted(one_patch(size=np.array([size])), target, source)
        assert np.any(image != target) == changes
        assert np.any(mask) == changes
    assert not np.any(pasted(one_patch(present=np.array([False])), target, source)[1])


@pytest.mark.parametrize("label", ["binary", "intensity", "logistic-intensity"])
def test_labels_equal_the_published_ones(pairs, label):
    target, image = pairs[0][3], pairs[0][3].copy()
    image[20:50, 10:40] = pairs[1][3][20:50, 10:40]
    mask = np.zeros(SHAPE, bool)
    mask[22:52, 0:36] = True
    logistic, tolerance = (1 / 6, 15), 20
    expected = PEER.grade(
        255 * target, 255 * image, mask, label, logistic=logistic, tolerance=tolerance
    )
    found = jax.jit(grade, static_argnames="label")(
        target, image, mask[..., None], label, 0.4, (logistic[0] * 255, logistic[1] / 255), 20 / 255
    )[..., 0]
    # The median is found in 255 steps, of the intensity or of the logistic label.
    assert_allclose(found, expected / (255 if label == "intensity" else 1), atol=0.51 / 255)
    assert 0.1 < np.mean(np.asarray(found) > 0) < 0.4


def test_continuous_label_is_the_factor(pairs):
    target, source = pairs[0][3], pairs[1][3]
    whole = np.ones((*SHAPE, 1), bool)
    binary, continuous = (
        grade(target, source, whole, label, 0.4, None, 0.1) for label in ("binary", "continuous")
    )
    assert_allclose(continuous, 0.4 * binary)
    assert 0.1 < binary.mean() < 0.9


@pytest.mark.parametrize("lift", LIFTS)
def test_medians_equal_scipys(pairs, lift):
    image = pairs[0][0][..., 0]
    expected = ndimage.median_filter(image, footprint=disk(5), mode="nearest")
    assert_allclose(lift(median_disk)(image), expected, atol=0.51 / 255)
    for size in (5, 7):
        expected = ndimage.median_filter(image > 0.5, size, mode="nearest")
        assert_array_equal(
            lift(lambda mask, size=size: majority(mask, size))(image > 0.5), expected
        )


def test_objects_are_what_differs_from_the_background(grey):
    target, source, masks = grey
    found = objects(target / np.float32(255), source / np.float32(255), None, ((0, 20 / 255),))
    assert_array_equal(found, masks)
    foreground = np.zeros((*SHAPE, 1), bool)
    foreground[:30] = True
    found = objects(target / np.float32(255), source / np.float32(255), foreground, ((0, 0.08),))
    assert_array_equal(found[0], masks[0] & foreground[..., 0])
    assert_array_equal(found[1], masks[1])
    assert objects(target, source, None, None) == (None, None)


def test_sides_follow_the_published_rule():
    rng = np.random.default_rng(0)
    size, scale = rng.integers(6, 90, (2000, 2)), rng.uniform(0.5, 2, 2000).astype(np.float32)
    low, high = np.array([6, 5]), np.array([80, 60])
    found = resized(jnp.asarray(size), scale, np.stack([low, high], 1))
    expected = [
        PEER.resized_sides(s, np.float64(f), low, high) for s, f in zip(size, scale, strict=True)
    ]
    # A quotient that should be whole may fall short of it in single or in double precision.
    assert np.abs(found - np.array(expected)).max() <= 1
    assert np.mean(np.any(found != np.array(expected), 1)) < 0.02


def test_boxes_hold_object_and_meet_the_targets(grey, drawn):
    """The conditions of the published retry loops, checked on every patch that was drawn."""
    _, _, (target_object, source_object) = grey
    places = 0
    for n, a in np.argwhere(drawn.present):
        corner, size, new_size, place = (
            x[n, a] for x in (drawn.source_corner, drawn.source_size, drawn.size, drawn.corner)
        )
        box = PEER.cut(source_object, corner, size)
        assert box.mean() > 0.7
        own = PEER.resize(box, new_size)
        met = own & PEER.cut(target_object, place, new_size)
        assert met.sum() / own.sum() > 0.69  # single pixels at one half may round either way
        assert np.all(place >= 1)
        assert np.all(place + new_size <= np.array(SHAPE) - 1)
        places += 1
    assert 64 <= places < 150
    # Not one and the same place for all, and not only the middle.
    assert len({tuple(p) for p in drawn.corner[drawn.present]}) > places / 2
    assert_array_equal(drawn.present[:, 0], True)


def test_draws_have_the_published_distributions(free):
    shape = np.array([256, 224])
    half = stats.gamma(2, scale=0.03).rvs((100_000, 1), random_state=0) + 0.05
    low, high = np.round(np.outer([0.03, 0.4], shape)).astype(int)
    expected = np.clip(half * shape, low, high).astype(int)
    # Boxes that the border does not cut off; these are the smaller ones, so both are weighted.
    inside = np.all((free.source_corner > 0), -1) & np.all(
        free.source_corner + free.source_size < shape, -1
    )
    assert 0.5 < inside.mean() < 0.9
    full = free.source_size[inside] / 2
    share = (shape - 2 * expected) / (shape - 2 * low)
    for axis in (0, 1):
        assert_allclose(
            full[:, axis].mean(), np.average(expected[:, axis], weights=share[:, axis]), rtol=0.03
        )
    count = free.present.sum(1)
    assert_allclose(np.bincount(count)[1:] / len(count), [0.25, 0.5, 0.25], atol=0.05)
    assert np.all(free.size >= low)
    assert np.all(free.size <= high)
    # N(1, 0.5) reaches either limit of the factor with probability 0.274.
    middling = np.all((free.source_size > 40) & (free.source_size < 68), -1)
    factor = (free.size / free.source_size)[middling, 0]
    assert_allclose([np.mean(factor <= 0.7), np.mean(factor > 1.25)], [0.274, 0.29], atol=0.06)
    room = shape - 2 * (free.size // 2) - 2
    for axis in (0, 1):
        u = (free.corner[..., axis] - 0.5) / room[..., axis]
        assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(free.factor, stats.uniform(0.05, 0.9).cdf).pvalue > 1e-3
    assert stats.kstest(free.angle.ravel(), stats.uniform(0, np.pi).cdf).pvalue > 1e-3
    assert abs(free.mixed.mean() - 0.5) < 0.06


def test_uniform_sizes_and_unmoved_patches():
    options = FREE | {"gamma": None, "resize": None, "shift": False}
    draws = jax.vmap(lambda key: draw(key, (256, 224), None, None, **options))(KEYS)
    assert_array_equal(draws.size, draws.source_size)
    assert_array_equal(draws.corner, draws.source_corner)
    whole = draws.source_size[..., 0][draws.source_corner[..., 0] > 0]
    assert whole.max() > 150
    assert whole.min() < 40


def test_the_whole_task_keeps_its_promises(grey, pairs):
    target, source, masks = grey
    foreground = np.asarray(masks[0])[..., None] & (np.arange(48)[None, :, None] < 30)
    task = jax.jit(
        jax.vmap(
            lambda key, foreground: nsa(
                key,
                jnp.asarray(target / np.float32(255)),
                jnp.asarray(source / np.float32(255)),
                foreground=foreground,
                background=((0, 20 / 255),),
                half_width=OPTIONS["half_width"],
                gamma=OPTIONS["gamma"],
            ),
            (0, None),
        )
    )
    made = jax.tree.map(np.asarray, task(KEYS[:8], foreground))
    assert made.image.dtype == made.label.dtype == np.float32
    assert made.image.min() >= 0
    assert made.image.max() <= 1
    assert not np.any(made.label[:, ~foreground])
    assert not np.any(made.label_std)
    change = np.abs(made.image - target / np.float32(255)).mean(-1, keepdims=True)
    labelled = made.label > 0
    # Clones of fewer than 50 pixels are left out, and some fall outside of the foreground.
    assert np.sum(np.any(labelled, (1, 2, 3))) >= 5
    assert np.mean(change[labelled] > 1 / 255) > 0.95
    # Published: from the logistic of no change, 0.12, up.
    assert made.label[labelled].min() > 1 / (1 + np.exp(2)) - 0.51 / 255
    assert np.mean(np.any(labelled, 0)[foreground]) > 0.3
    nothing = task(KEYS[:8], np.zeros_like(foreground))
    assert_array_equal(nothing.image, np.broadcast_to(target / np.float32(255), made.image.shape))
    assert not np.any(nothing.label)


def test_calibration_puts_its_two_points_on_the_curve(pairs):
    images = pairs[0][:2, ..., :1] * np.float32([1, 0.3])[:, None, None, None]
    options = {"half_width": OPTIONS["half_width"], "blend": "swap"}
    key = jax.random.key(1)
    steepness, middle = calibrate_logistic(key, images, num_samples=3, **options)
    # Of two images each sample takes either for its target.
    task = jax.jit(lambda *args: nsa(*args, label="intensity", **options).label)
    keys = jax.random.split(jax.random.split(key)[1], 3)
    found = [[np.asarray(task(k, *pair)) for pair in (images, images[::-1])] for k in keys]
    ends = []
    for choice in itertools.product(*found):
        labels = np.stack(choice)
        saturated = np.percentile(labels[labels > 0], 40)
        ends.append(1 / (1 + np.exp(-steepness * (saturated - middle))))
    assert np.any(np.isclose(ends, 0.99, atol=1e-5))
    assert_allclose(1 / (1 + np.exp(steepness * middle)), 0.1, atol=1e-6)


def test_presets_are_options_of_the_task():
    names = inspect.signature(nsa).parameters
    classes = ("bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw")
    classes += ("toothbrush", "transistor", "zipper", "carpet", "grid", "leather", "tile", "wood")
    for name in ("chest_xray", *classes):
        preset = nsa_preset(name)
        assert set(preset) <= set(names)
        assert preset["gamma"][0] == 2
        preset.clear()  # a caller's own copy
    capsule, wood, xray = map(nsa_preset, ("capsule", "wood", "chest_xray"))
    assert capsule["half_width"] == ((0.03, 0.15), (0.03, 0.4))
    assert_allclose(capsule["background"], [(200 / 255, 60 / 255)])
    assert_allclose(capsule["logistic"], (255 / 2, 4 / 255))
    assert (wood["blend"], wood["num_patches"], wood["resize"]) == ("mixed", 4, (0.5, 2))
    assert wood["background"] is None
    assert_allclose(wood["logistic"], (255 / 6, 15 / 255))
    defaults = {name: p.default for name, p in names.items()} | {"background": xray["background"]}
    assert xray.items() <= defaults.items()


def test_unusable_options_are_named():
    image = np.zeros((16, 16, 1), np.float32)
    for field in ("outline", "blend", "label"):
        with pytest.raises(InputError, match=field):
            nsa(KEYS[0], image, image, **{field: "x"})
    with pytest.raises(InputError, match="gamma"):
        nsa(KEYS[0], image, image, gamma=(1.5, 0.1, 0.1))
    with pytest.raises(InputError, match="preset"):
        nsa_preset("knee")
    with pytest.raises(InputError, match="images"):
        calibrate_logistic(KEYS[0], image[None])
    with pytest.raises(InputError, match="no change"):
        calibrate_logistic(KEYS[0], np.stack([image] * 2), num_samples=1, blend="swap")
