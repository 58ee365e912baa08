import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.synthesis import fpi

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
