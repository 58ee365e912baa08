import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from caal_jax.errors import InputError
from caal_jax.synthesis import jitter_source
from caal_jax.synthesis.source import place_source

RNG = np.random.default_rng(0)
SQUARE = RNG.random((8, 8, 2), np.float32)
WIDE = RNG.random((6, 10, 1), np.float32)
KEYS = jax.random.split(jax.random.key(0), 512)

placed = jax.jit(place_source)
jittered = jax.jit(jitter_source)


@jax.jit
def jittered_many(source, log_gain, offset):
    return jax.vmap(lambda key: jitter_source(key, source, log_gain=log_gain, offset=offset))(KEYS)


def reference(source, turns, steps, gain, offset):
    if turns[0]:
        source = np.flipud(source)
    if turns[1]:
        source = np.fliplr(source)
    if turns[2] and source.shape[0] == source.shape[1]:
        source = source.transpose(1, 0, 2)
    source = np.roll(np.roll(source, steps[0], 0), steps[1], 1)
    return np.clip((np.float64(source) - 0.5) * gain + 0.5 + offset, 0, 1)


@pytest.mark.parametrize("source", [SQUARE, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize("turns", list(itertools.product([False, True], repeat=3)))
def test_arithmetic_equals_numpy(source, turns):
    for steps, gain, offset in (((0, 0), 1.0, 0.0), ((2, -3), 1.7, 0.2), ((-1, 9), 0.4, -0.5)):
        found = placed(source, jnp.array(turns), jnp.array(steps), gain, offset)
        assert found.dtype == jnp.float32
        assert_allclose(found, reference(source, turns, steps, gain, offset), atol=1e-6)


def test_nothing_drawn_is_nothing_done():
    found = placed(SQUARE, jnp.zeros(3, bool), jnp.zeros(2, int), 1.0, 0.0)
    assert_allclose(found, SQUARE, atol=1e-7)


@pytest.mark.parametrize("source", [SQUARE, WIDE], ids=["square", "wide"])
def test_every_image_stays_in_range(source):
    many = np.asarray(jittered_many(source, 0.5, 0.3))
    assert many.shape == (len(KEYS), *source.shape)
    assert many.dtype == np.float32
    assert many.min() == 0  # clipped, not rescaled
    assert many.max() == 1


def test_eager_jit_and_vmap_agree():
    many = jittered_many(SQUARE, 0.5, 0.3)
    assert_allclose(jittered(KEYS[0], SQUARE), many[0], atol=1e-6)
    assert_allclose(jitter_source(KEYS[0], SQUARE), many[0], atol=1e-6)
    assert_allclose(jittered(KEYS[1], SQUARE), many[1], atol=1e-6)


@pytest.mark.parametrize(
    ("source", "ways", "steps"), [(SQUARE, 8, (1, 1)), (WIDE, 4, (1, 2))], ids=["square", "wide"]
)
def test_every_turn_and_every_step_is_drawn_and_no_other(source, ways, steps):
    """With the tone left alone each draw is one of the rearrangements, and all of them come."""
    many = np.asarray(jittered_many(source, 0.0, 0.0))
    flips = itertools.product([False, True], repeat=3)
    turns = [turn for turn in flips if ways == 8 or not turn[2]]
    moves = list(itertools.product(*(range(-most, most + 1) for most in steps)))
    known = np.array([[reference(source, t, m, 1, 0) for m in moves] for t in turns])
    distance = np.abs(many[:, None, None] - known).max((-3, -2, -1)).reshape(len(many), -1)
    assert_allclose(distance.min(1), 0, atol=1e-6)
    counts = np.bincount(distance.argmin(1), minlength=ways * len(moves))
    expected = len(many) / counts.size
    # Equally likely: within five standard deviations of a Poisson count.
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert (counts > 0).all()


def test_tone_is_normal_around_one_half():
    flat = jnp.full(SQUARE.shape, 0.6)
    gain = (np.float64(jittered_many(flat, 0.5, 0.0)[:, 0, 0, 0]) - 0.5) / 0.1
    assert (gain < 5).mean() > 0.99  # the rest is clipped
    assert abs(np.mean(np.log(gain))) < 4 * 0.5 / np.sqrt(len(KEYS))
    assert_allclose(np.std(np.log(gain)), 0.5, rtol=0.15)
    offset = np.float64(jittered_many(flat, 0.0, 0.05)[:, 0, 0, 0]) - 0.6
    assert abs(np.mean(offset)) < 4 * 0.05 / np.sqrt(len(KEYS))
    assert_allclose(np.std(offset), 0.05, rtol=0.15)


def test_key_comes_first_and_options_by_name():
    first, second, *options = inspect.signature(jitter_source).parameters.values()
    assert (first.name, second.name) == ("key", "source")
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}


def test_a_batch_is_refused():
    with pytest.raises(InputError, match=r"vmap"):
        jitter_source(KEYS[0], jnp.zeros((2, 8, 8, 1)))
