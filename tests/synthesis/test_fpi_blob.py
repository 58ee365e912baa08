"""Ours alone, so against a restatement in NumPy, on complex numbers and in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from caal_jax.errors import InputError
from caal_jax.synthesis import fpi_blob
from caal_jax.synthesis.fpi_blob import Blob, draw, weight

KEYS = jax.random.split(jax.random.key(0), 6)
SHAPE = (64, 48)
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}
OPTIONS = {
    "core_fraction": 0.8,
    "radius": (0.1, 0.3),
    "softness": (0.1, 0.6),
    "share": (0.05, 1.0),
}
DEFAULTS = OPTIONS | {"radius": (0.03, 0.25), "softness": (0.02, 0.6)}
# From a plain disc to a turned, wavy ellipse beyond the border.
BLOBS = Blob(
    np.array([[30, 20], [12, 40], [60, 3]]),
    np.array([[10, 10], [9, 17], [25, 13]], np.float32),
    np.array([0, 0.6, 2.8], np.float32),
    np.array([np.zeros((4, 2)), *np.random.default_rng(0).normal(0, 0.1, (2, 4, 2))], np.float32),
    np.array([0.5, 0.02, 0.3], np.float32),
)


def expected_weight(blob, shape):
    centre, radii, angle, waves, softness = (np.float64(part) for part in blob)
    row, column = np.mgrid[: shape[0], : shape[1]]
    turned = (row - centre[0] + 1j * (column - centre[1])) * np.exp(-1j * angle)
    place = turned.real / radii[0] + 1j * turned.imag / radii[1]
    direction = place / np.where(place == 0, 1, np.abs(place))
    outline = 1 + sum(
        ((even - 1j * odd) * direction**number).real
        for number, (even, odd) in zip((2, 3, 4, 5), waves, strict=True)
    )
    return np.clip((1 - np.abs(place) * outline) / softness, 0, 1)[..., None]


@pytest.mark.parametrize(
    "lift",
    [
        lambda f: lambda blobs: [f(blob) for blob in unstacked(blobs)],
        lambda f: lambda blobs: [jax.jit(f, **QUICK)(blob) for blob in unstacked(blobs)],
        lambda f: jax.jit(jax.vmap(f), **QUICK),
    ],
    ids=["eager", "jit", "vmap"],
)
def test_weight_is_the_restated_one(lift):
    found = lift(lambda blob: weight(blob, SHAPE))(BLOBS)
    for one, blob in zip(found, unstacked(BLOBS), strict=True):
        expected = expected_weight(blob, SHAPE)
        # A narrow rim multiplies the rounding of the distance.
        assert_allclose(one, expected, atol=1e-6 / blob.softness)
        assert expected[*blob.centre] == one[*blob.centre] == 1
        assert np.any((expected > 0) & (expected < 1))


def unstacked(blobs):
    return [Blob(*parts) for parts in zip(*blobs, strict=True)]


@pytest.fixture(scope="module")
def made(pairs):
    """Anomalies of both directions, with their blobs; compiled once for this file."""
    targets, sources, foregrounds = (x[[0, 1, 2, 3, 0, 1]] for x in pairs)
    # Both images agree in a corner, as they do in air.
    targets, sources = (np.array(x) for x in (targets, sources))
    targets[:, :, :22], sources[:, :, :22] = 0.0, 0.0004

    def one(key, target, source, foreground):
        return (
            fpi_blob(key, target, source, foreground=foreground, **OPTIONS),
            fpi_blob(key, source, target, foreground=foreground, **OPTIONS),
            draw(key, SHAPE, foreground=foreground, **OPTIONS),
        )

    arguments = (KEYS, targets, sources, foregrounds)
    return arguments, jax.tree.map(np.asarray, jax.jit(jax.vmap(one), **QUICK)(*arguments))


def test_image_and_label_follow_from_the_draws(made):
    (_, targets, sources, foregrounds), (forth, _, (blobs, shares)) = made
    for k, blob in enumerate(unstacked(blobs)):
        foreground, target, source = foregrounds[k], targets[k], sources[k]
        share = shares[k] * expected_weight(blob, SHAPE) * foreground
        assert_allclose(forth.image[k], (1 - share) * target + share * source, atol=1e-5)
        agree = (np.floor(target / 1e-3) == np.floor(source / 1e-3)).all(-1, keepdims=True)
        assert_allclose(forth.label[k], share * ~agree, atol=1e-5)
        assert foreground[*blob.centre]
        untouched = (expected_weight(blob, SHAPE) == 0) | ~foreground
        assert_array_equal(forth.image[k][untouched[..., 0]], target[untouched[..., 0]])
        assert 0.5 < untouched.mean() < 1
    # Both sides of the law have been seen.
    air = np.broadcast_to(np.arange(48)[:, None] < 22, forth.label.shape)
    assert not np.any(forth.label[air])
    assert np.any((forth.image != targets)[np.repeat(air, 2, -1)])
    assert np.all(forth.label.max((1, 2, 3)) > 0.04)
    assert forth.label.dtype == forth.image.dtype == np.float32


def test_both_directions_conserve_and_share_the_label(made):
    (_, targets, sources, _), (forth, back, _) = made
    assert_allclose(forth.image + back.image, targets + sources, atol=1e-6)
    assert_array_equal(forth.label, back.label)
    assert not np.any(forth.label_std)


def test_eager_equals_compiled(made):
    arguments, (forth, *_) = made
    key, target, source, foreground = (x[1] for x in arguments)
    alone = fpi_blob(key, target, source, foreground=foreground, **OPTIONS)
    assert_allclose(alone.image, forth.image[1], atol=1e-5)
    assert_allclose(alone.label, forth.label[1], atol=1e-5)


def test_no_foreground_is_everywhere_and_an_empty_one_nowhere(pairs):
    target, source, foreground = (x[0] for x in pairs)
    task = jax.jit(
        lambda empty: (
            fpi_blob(KEYS[2], target, source, **OPTIONS),
            fpi_blob(KEYS[2], target, source, foreground=empty),
            fpi_blob(KEYS[2], target, source, foreground=foreground, tolerance=None),
        ),
        **QUICK,
    )
    anywhere, nowhere, closed_over = task(np.zeros_like(foreground))
    blob, share = draw(KEYS[2], SHAPE, foreground=None, **OPTIONS)
    expected = share * expected_weight(blob, SHAPE)
    assert_allclose(anywhere.image, target + expected * (source - target), atol=1e-5)
    assert_array_equal(nowhere.image, target)
    assert not np.any(nowhere.label)
    # Without a tolerance every pixel that was mixed counts.
    assert_array_equal(closed_over.label > 0, np.any(closed_over.image != target, -1)[..., None])
    assert np.any(closed_over.label)


def test_draws_are_those_of_the_docstring():
    keys = jax.random.split(jax.random.key(2), 5000)
    draws = jax.vmap(lambda key: draw(key, (100, 80), foreground=None, **DEFAULTS))
    blob, share = jax.tree.map(np.asarray, jax.jit(draws, **QUICK)(keys))
    for axis, (low, high) in enumerate([(10, 90), (8, 72)]):
        values, counts = np.unique(blob.centre[:, axis], return_counts=True)
        assert_array_equal(values, np.arange(low, high))
        assert stats.chisquare(counts).pvalue > 1e-3
    ratio = np.log2(blob.radii[:, 1] / blob.radii[:, 0])
    numbers = [blob.radii[:, 0], ratio, blob.angle, blob.softness, share]
    laws = [
        stats.loguniform(0.03 * 80, 0.25 * 80),
        stats.uniform(-1, 2),
        stats.uniform(0, np.pi),
        stats.uniform(0.02, 0.58),
        stats.uniform(0.05, 0.95),
    ]
    for row, spread in enumerate((0.12, 0.10, 0.07, 0.05)):
        numbers += list(blob.waves[:, row].T)
        laws += [stats.norm(0, spread)] * 2
    for found, law in zip(numbers, laws, strict=True):
        assert stats.kstest(found, law.cdf).pvalue > 1e-3
    together = np.corrcoef(np.stack([*blob.centre.T, *numbers]))
    assert np.abs(together[~np.eye(len(together), dtype=bool)]).max() < 4.5 / np.sqrt(len(keys))


def test_pictures_alone_are_taken():
    for shape, hint in (((2, 16, 16, 1), "vmap"), ((16, 16, 16, 1), "Use fpi for volumes")):
        image = jnp.zeros(shape)
        with pytest.raises(InputError, match=hint):
            fpi_blob(KEYS[0], image, image)
