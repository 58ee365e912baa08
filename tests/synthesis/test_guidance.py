"""The ways of using equalised images, each against what it says about the images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, sparse
from skimage import exposure

from caal_jax.errors import InputError
from caal_jax.preprocess.intensity import foreground
from caal_jax.synthesis import Anomaly, fpi, poisson, probabilistic_pii
from caal_jax.synthesis.guidance import guide

SHAPE = (40, 36)
KEY = jax.random.key(4)


@pytest.fixture(scope="module")
def pair():
    """Target and source (40, 36, 2) of low contrast round a body, and the target's foreground."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((2, *SHAPE, 2)), (0, 2, 2, 0))
    images = 0.5 + 1.5 * (noise - noise.mean())
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    images *= ((row - 20) ** 2 + (column - 18) ** 2 < 16**2)[None, ..., None]
    target, source = images.astype(np.float32)
    target, source = jnp.asarray(target), jnp.asarray(source)
    return target, source, foreground(target)


def fpi_task(key, target, source, foreground):
    return fpi(key, target, source, foreground=foreground)


def guided(corrupt, way, *, equalise_foreground=True):
    return guide(corrupt, way, equalise_foreground=equalise_foreground, foreground_threshold=0.05)


def equalised(image, mask):
    """scikit-image's equalisation of the body, channel by channel."""
    mask = np.asarray(mask)
    channels = [
        np.where(mask[..., 0], exposure.equalize_hist(channel, mask=mask[..., 0]), 0)
        for channel in np.moveaxis(np.asarray(image), -1, 0)
    ]
    return np.stack(channels, -1).astype(np.float32)


def test_plain_ways_leave_the_task_alone():
    for way in ("none", "preprocess"):
        assert guided(fpi_task, way) is fpi_task
    with pytest.raises(InputError, match="label_only"):
        guided(fpi_task, "labels")


def test_source_guidance_equalises_the_source_alone(pair):
    target, source, inside = pair
    made = jax.jit(guided(fpi_task, "source_guidance"))(KEY, target, source, inside)
    own = equalised(source, foreground(source))
    expected = jax.jit(fpi_task)(KEY, target, own, inside)
    assert_allclose(made.image, expected.image, atol=1e-5)
    assert_array_equal(made.label, expected.label)
    assert made.label.any()


def dirichlet(field, box):
    """L e = field inside the box, 0 outside: a dense solve, written from the definition."""
    rows, columns = (s.stop - s.start for s in box)
    second = [
        sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(n, n))
        for n in (rows, columns)
    ]
    laplace = sparse.kron(second[0], sparse.eye_array(columns)) + sparse.kron(
        sparse.eye_array(rows), second[1]
    )
    e = np.zeros(SHAPE)
    e[box] = np.linalg.solve(laplace.toarray(), field[box].ravel()).reshape(rows, columns)
    return e


def test_both_guidance_solves_with_equalised_gradients_and_original_rim(pair):
    target, source, inside = pair
    box = slice(9, 24), slice(8, 30)

    def corrupt(key, target, source, foreground):
        cut = slice(8, 25), slice(7, 31)  # the box and its rim
        mask = np.ones((17, 24, 1), np.float32)
        blended = poisson.blend_dst(target[cut], source[cut], mask)
        label = np.ones((*SHAPE, 1), np.float32)
        return Anomaly(target.at[cut].set(blended), label, label)

    made = jax.jit(guided(corrupt, "both_guidance"))(KEY, target, source, inside)
    foreign, own = equalised(source, foreground(source)), equalised(target, inside)
    for channel in range(2):
        # The clone takes the source's forward differences from every pixel inside the box.
        field = np.zeros(SHAPE)
        for axis in (0, 1):
            change = np.zeros(SHAPE)
            change[box] = -np.diff((own - foreign)[..., channel], axis=axis, append=0)[box]
            field += np.diff(change, axis=axis, prepend=0)
        field += ndimage.laplace((own - target)[..., channel], mode="nearest")
        expected = target[..., channel] + dirichlet(field, box)
        expected = np.clip(expected, target.min(), target.max())
        assert_allclose(made.image[..., channel], expected, atol=2e-5)
    is_changed = np.any(made.image != target, -1)
    assert 200 < is_changed.sum() <= 15 * 22


@pytest.mark.parametrize("equalise_foreground", [True, False])
def test_label_only_measures_the_change_on_the_clean_target_s_scale(pair, equalise_foreground):
    target, source, inside = pair
    relabelled = guided(fpi_task, "label_only", equalise_foreground=equalise_foreground)
    made, plain = jax.jit(lambda *args: (relabelled(*args), fpi_task(*args)))(
        KEY, target, source, inside
    )
    assert_array_equal(made.image, plain.image)
    change = 0
    for channel in range(2):
        clean = np.asarray(target[..., channel], np.float64)
        counted = clean[np.asarray(inside)[..., 0]] if equalise_foreground else clean
        histogram, edges = np.histogram(counted, 256)
        centres, shares = (edges[:-1] + edges[1:]) / 2, np.cumsum(histogram) / counted.size
        before, after = (np.interp(x[..., channel], centres, shares) for x in (target, made.image))
        change = np.maximum(change, np.abs(after - before))
    expected = np.where(plain.label[..., 0] > 0, change, 0)
    assert_allclose(made.label[..., 0], expected, atol=2e-3)
    assert expected.max() > 0.2


def test_label_only_scales_the_disagreement_like_the_label(pair):
    target, source, inside = pair
    shift = np.zeros((*SHAPE, 2), np.float32)
    shift[12:20, 10:20] = 0.05

    def corrupt(key, target, source, foreground):
        label = np.abs(shift[..., :1])
        return Anomaly(target + shift, label, label / 5)

    made = jax.jit(guided(corrupt, "label_only"))(KEY, target, source, inside)
    assert_allclose(made.label_std, made.label / 5, atol=1e-5)
    assert made.label.max() > 0.05


@pytest.mark.parametrize(
    ("way", "task"),
    [("source_guidance", fpi), ("both_guidance", fpi), ("label_only", probabilistic_pii)],
)
def test_every_task_stays_an_anomaly(pair, way, task):
    target, source, inside = pair

    def corrupt(key, target, source, foreground):
        return task(key, target, source, foreground=foreground)

    batch = jax.jit(jax.vmap(guided(corrupt, way), (0, None, None, None)))
    made = batch(jax.random.split(KEY, 4), target, source, inside)
    assert all(np.isfinite(x).all() for x in made)
    assert made.image.min() >= 0
    assert made.image.max() <= 1
    assert made.label.min() >= 0
    assert made.label.max() <= 1
    assert made.label_std.min() >= 0
    assert made.label.any()
    assert not np.asarray(made.label)[:, ~np.asarray(inside)].any()
    same = np.all(np.asarray(made.image) == np.asarray(target), -1)
    assert not np.asarray(made.label)[..., 0][same].any()
