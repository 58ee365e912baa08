"""Against SciPy's look-up at the same places, and against moves that NumPy has a name for."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, stats

from caal_jax.errors import InputError
from caal_jax.synthesis import jitter_source, source
from caal_jax.synthesis.source import place_source

RNG = np.random.default_rng(0)
SQUARE = RNG.random((24, 24, 2), np.float32)
ODD = RNG.random((19, 37, 2), np.float32)
KEYS = jax.random.split(jax.random.key(0), 4000)
# Each example has its flip, angle, zoom, steps, gain and offset.
PLACES = (
    np.array([False, True, False, True]),
    np.array([0.7, 0.4, 2.5, 5.9], np.float32),
    np.array([1, 0.31, 1.73, 3.9], np.float32),
    np.array([[0, 0], [-2, 6], [-40, 80], [5, -4]]),
    np.array([1, 1.7, 0.4, 1], np.float32),
    np.array([0, 0.2, -0.5, 0], np.float32),
)
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}
jitted = jax.jit(place_source, **QUICK)


@pytest.fixture(scope="module")
def many():
    """A picture jittered with the first 256 keys, compiled and batched."""
    lifted = jax.vmap(jitter_source, (0, None))
    return np.asarray(jax.jit(lifted, **QUICK)(KEYS[:256], ODD))


def one_by_one(place):
    return lambda image: [place(image, *(x[k] for x in PLACES)) for k in range(len(PLACES[0]))]


def expected_places(image, flip, angle, zoom, steps, gain, offset):
    """SciPy's pixels, and where no rounding can choose between two of them."""
    middle = (np.array(image.shape[:2])[:, None, None] - 1) / 2
    away = np.mgrid[: image.shape[0], : image.shape[1]] - steps[:, None, None] - middle
    angle = np.float64(angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    at = np.tensordot(turn, away, 1) / np.float64(zoom)
    at = at * np.array([1 - 2 * flip, 1])[:, None, None] + middle
    pixels = [
        ndimage.map_coordinates(channel, at, order=0, mode="reflect")
        for channel in np.moveaxis(np.float64(image), -1, 0)
    ]
    toned = np.clip((np.stack(pixels, -1) - 0.5) * gain + 0.5 + offset, 0, 1)
    return toned, np.all(np.abs(at % 1 - 0.5) > 1e-4, axis=0)


@pytest.mark.parametrize(
    "lift",
    [
        one_by_one(place_source),
        one_by_one(jitted),
        lambda image: jax.jit(jax.vmap(lambda *place: place_source(image, *place)), **QUICK)(
            *PLACES
        ),
    ],
    ids=["eager", "jit", "vmap"],
)
def test_pixels_are_those_that_scipy_finds(lift):
    for found, *place in zip(lift(ODD), *PLACES, strict=True):
        expected, clear = expected_places(ODD, *place)
        assert clear.mean() > 0.99
        assert found.dtype == jnp.float32
        assert_allclose(found[clear], expected[clear], atol=1e-6)


def test_moves_that_numpy_has_a_name_for():
    def place(flip=False, angle=0.0, zoom=1.0, steps=(0, 0)):
        return jitted(SQUARE, flip, angle, zoom, jnp.array(steps), 1.0, 0.0)

    mirrored = np.pad(SQUARE, [(5, 5), (5, 5), (0, 0)], mode="symmetric")
    enlarged = SQUARE[6:18, 6:18].repeat(2, 0).repeat(2, 1)
    quarter = np.pi / 2
    for found, expected in (
        (place(), SQUARE),
        (place(flip=True), np.flipud(SQUARE)),
        (place(angle=quarter), np.rot90(SQUARE, -1)),
        (place(flip=True, angle=quarter), np.rot90(np.flipud(SQUARE), -1)),
        (place(steps=(5, -4)), mirrored[:24, 9:33]),
        (place(zoom=2.0), enlarged),
        (place(zoom=2.0, angle=quarter), np.rot90(enlarged, -1)),
    ):
        assert_allclose(found, expected, atol=1e-7)


def test_compiled_batches_hold_what_is_drawn_alone(many):
    # Rounding may tip single pixels to a neighbour.
    assert np.mean(np.abs(jitter_source(KEYS[1], ODD) - many[1]) > 1e-6) < 0.01
    assert np.mean(np.abs(many[0] - many[1]) > 1e-6) > 0.9


def test_every_image_stays_in_range(many):
    assert many.shape == (256, *ODD.shape)
    assert many.dtype == np.float32
    assert many.min() == 0  # clipped, not rescaled
    assert many.max() == 1


@pytest.fixture
def drawn(monkeypatch):
    """What `jitter_source` asks of `place_source`, as arrays (4000, ...)."""
    monkeypatch.setattr(source, "place_source", lambda image, *place: place)

    def draw(shape, **options):
        lifted = jax.vmap(lambda key: jitter_source(key, jnp.zeros(shape), **options))
        return [np.asarray(x) for x in jax.jit(lifted, **QUICK)(KEYS)]

    return draw


def test_draws_are_those_of_the_docstring(drawn):
    flip, angle, zoom, steps, gain, offset = drawn((40, 24, 1))
    assert abs(flip.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(KEYS))
    assert stats.kstest(angle, stats.uniform(0, 2 * np.pi).cdf).pvalue > 1e-3
    assert stats.kstest(zoom, stats.loguniform(0.3, 4).cdf).pvalue > 1e-3
    for axis, reach in ((0, 10), (1, 6)):
        values, counts = np.unique(steps[:, axis], return_counts=True)
        assert_array_equal(values, np.arange(-reach, reach + 1))
        assert stats.chisquare(counts).pvalue > 1e-3
    # A normal number times a uniform one, which gain and offset share.
    normal, uniform = RNG.normal(size=(2, 100_000)), RNG.random(100_000)
    tone = np.stack([np.log(gain) / 0.5, offset / 0.3])
    for found in tone:
        assert stats.ks_2samp(found, normal[0] * uniform).pvalue > 1e-3
    together = np.abs(normal * uniform).prod(0).mean()
    assert_allclose(np.abs(tone).prod(0).mean(), together, rtol=0.1)
    # Nothing else goes together.
    columns = np.stack([flip, angle, zoom, *steps.T, *tone])
    others = np.corrcoef(columns)[~np.eye(len(columns), dtype=bool)]
    assert np.abs(others).max() < 4.5 / np.sqrt(len(KEYS))


def test_options_set_the_limits(drawn):
    _, _, zoom, steps, gain, offset = drawn(
        (40, 24, 1), shift=0.1, zoom=(1, 2), log_gain=0.1, offset=0.05
    )
    assert stats.kstest(zoom, stats.loguniform(1, 2).cdf).pvalue > 1e-3
    assert_array_equal(np.abs(steps).max(0), [4, 2])
    # A uniform number's mean square is 1/3.
    assert_allclose(np.std(np.log(gain)), 0.1 / np.sqrt(3), rtol=0.1)
    assert_allclose(np.std(offset), 0.05 / np.sqrt(3), rtol=0.1)


def test_key_comes_first_and_options_by_name():
    first, second, *options = inspect.signature(jitter_source).parameters.values()
    assert (first.name, second.name) == ("key", "source")
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (8, 8, 8, 1), (8, 8)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(InputError, match=r"vmap"):
        jitter_source(KEYS[0], jnp.zeros(shape))
