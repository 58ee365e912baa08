import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.synthesis import fpi, patches

KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.fixture(scope="module")
def batch():
    """Anomalies of both directions; compiled once for this file."""
    return jax.jit(jax.vmap(fpi))


@pytest.fixture(scope="module")
def both(batch, pairs):
    targets, sources, _ = pairs
    return batch(KEYS, targets, sources), batch(KEYS, sources, targets)


def test_box_is_a_literal_mix(both, pairs):
    targets, sources, _ = pairs
    forth, _ = both
    for image, label, target, source in zip(
        *map(np.asarray, forth[:2]), targets, sources, strict=True
    ):
        rows, columns = np.flatnonzero(label.any((1, 2))), np.flatnonzero(label.any((0, 2)))
        box = np.zeros(label.shape, bool)
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        share = label.max()
        assert 0.05 <= share <= 0.95
        assert_allclose(
            image, np.where(box, (1 - share) * target + share * source, target), atol=1e-6
        )
        assert_array_equal(image[~box[..., 0]], target[~box[..., 0]])
        agree = np.floor(target / 1e-3) == np.floor(source / 1e-3)
        assert_array_equal(label, share * (box & ~agree.all(-1, keepdims=True)))


def test_both_directions_conserve_and_share_the_label(both, pairs):
    forth, back = both
    assert_allclose(forth.image + back.image, pairs[0] + pairs[1], atol=1e-6)
    assert_array_equal(forth.label, back.label)
    assert not np.any(forth.label_std)


def test_eager_equals_compiled(both, pairs):
    alone = fpi(KEYS[1], pairs[0][1], pairs[1][1])
    assert_allclose(alone.image, both[0].image[1], atol=1e-6)
    assert_array_equal(alone.label, both[0].label[1])


def test_share_limits_give_the_original_and_the_plain_paste(pairs):
    target, source, _ = (x[0] for x in pairs)
    mix = jax.jit(lambda low: fpi(KEYS[0], target, source, share=(low, low), tolerance=None))
    assert_array_equal(mix(0.0).image, target)
    assert not np.any(mix(0.0).label)
    paste = mix(1.0)
    inside = np.asarray(paste.label[..., 0] == 1)
    assert_array_equal(paste.image[inside], source[inside])


def test_agreeing_pixels_are_not_labelled(pairs):
    target, source, _ = (x[0] for x in pairs)
    air = np.zeros((*target.shape[:2], 1), bool)
    air[:, 20:30] = True
    anomaly = jax.jit(lambda key, a, b: fpi(key, a, b, half_width=(0.3, 0.4)))(
        KEYS[0], jnp.where(air, 0, target), jnp.where(air, 0.0004, source)
    )
    assert not np.any(np.asarray(anomaly.label)[air])
    assert np.any(anomaly.label)


def test_classes_are_whole_numbers_of_quarters(pairs):
    """K = 5 of the abdomen: own shares 3/4 .. 0 are the classes 1 .. 4, air and body without 0."""
    targets, sources, _ = (np.repeat(x, 8, axis=0) for x in pairs)
    keys = jax.random.split(jax.random.key(1), len(targets))
    task = jax.jit(jax.vmap(lambda *args: fpi(*args, num_classes=5)))
    found = jax.tree.map(np.asarray, task(keys, targets, sources))
    classes = found.label * 4
    assert_array_equal(classes, classes.round())
    largest = classes.max((1, 2, 3))
    assert_array_equal(np.unique(largest), [1, 2, 3, 4])
    for image, label, target, source in zip(*found[:2], targets, sources, strict=True):
        inside = label[..., 0] > 0
        own = 1 - label[inside]
        mixed = own * target[inside] + (1 - own) * source[inside]
        assert_allclose(image[inside], mixed, atol=1e-6)


@pytest.fixture(scope="module")
def volumes():
    rng = np.random.default_rng(4)
    return rng.random((22, 16, 24, 1), np.float32), rng.random((22, 16, 24, 1), np.float32)


def test_volumes_get_a_cube(volumes):
    target, source = volumes
    shape = target.shape[:-1]
    key = jax.random.key(6)
    # Sides follow the first axis; centres anywhere, so that cubes are cut off.
    options = {"core_fraction": 1.0, "half_width": (0.2, 0.5)}
    task = jax.jit(lambda key, a, b: fpi(key, a, b, tolerance=None, **options))
    forth, back = task(key, target, source), task(key, source, target)
    square = patches.draw_square(
        key,
        shape,
        foreground=None,
        relative_to="first",
        share=(0.05, 0.95),
        num_classes=None,
        **options,
    )
    box = np.zeros(target.shape, bool)
    box[tuple(slice(int(span.start), int(span.stop)) for span in square.spans)] = True
    share = float(square.share)
    expected = np.where(box, (1 - share) * target + share * source, target)
    assert 4**3 < box.sum() < box.size
    assert_allclose(forth.image, expected, atol=1e-6)
    assert_array_equal(np.asarray(forth.image)[~box], target[~box])
    assert_allclose(forth.label, share * box, atol=1e-7)
    assert_allclose(forth.image + back.image, target + source, atol=1e-6)


@functools.cache
def compiled(shape):
    """Both directions, and both images in other colours; one program per shape."""

    def run(key, target, source, foreground):
        task = functools.partial(fpi, key, foreground=foreground)
        return (
            task(target, source),
            task(source, target),
            task(1 - target[..., ::-1] / 2, 1 - source[..., ::-1] / 2),
            task(target, target),
        )

    # It runs a few times: less to compile.
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("shape", [(16, 512, 2), (33, 16, 1), (16, 18, 17, 1)])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), fill=st.sampled_from([0.0, 0.02, 1.0]))
def test_what_always_holds(shape, seed, fill):
    rng = np.random.default_rng(seed)
    target, source = (
        rng.random(shape, np.float32) ** np.float32(rng.choice([0, 1, 9])) for _ in range(2)
    )
    foreground = rng.random((*shape[:-1], 1)) < fill
    found = compiled(shape)(jax.random.key(seed), target, source, foreground)
    forth, back, recoloured, same = jax.tree.map(np.asarray, found)
    for anomaly in (forth, back, recoloured, same):
        assert np.isfinite(anomaly.image).all()
        assert anomaly.image.min() >= 0
        assert anomaly.image.max() <= 1
        marked = anomaly.label[anomaly.label != 0]
        assert len(np.unique(marked)) <= 1
        assert np.all((marked >= 0.05) & (marked <= 0.95))
        assert not np.any(anomaly.label[~foreground])
        assert not np.any(anomaly.label_std)
    # Where both images agree there is nothing to mix; elsewhere it goes half unseen at most.
    assert_allclose(forth.image + back.image, target + source, atol=1e-6)
    assert_array_equal(forth.label, back.label)
    assert_allclose(recoloured.image, 1 - forth.image[..., ::-1] / 2, atol=1e-6)
    assert_allclose(same.image, target, atol=1e-6)
    assert not np.any(same.label)
    changed = np.any(forth.image != target, -1)
    spans = [
        np.flatnonzero(changed.any(tuple({*range(changed.ndim)} - {k})))
        for k in range(changed.ndim)
    ]
    assert all(
        np.ptp(span) + 1 <= 2 * max(1, round(0.2 * shape[0]) - 1) for span in spans if len(span)
    )
    if not foreground.any():
        assert_array_equal(forth.image, target)
