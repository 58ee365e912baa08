import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from caal_jax.synthesis import patches, pii
from caal_jax.synthesis.pii import block_sizes
from caal_jax.synthesis.poisson import interpolate

KEYS = jax.random.split(jax.random.key(3), 4)


def square_of(key, shape, half_width=(0.05, 0.2)):
    return patches.draw_square(
        key,
        shape,
        foreground=None,
        core_fraction=1.0,
        half_width=half_width,
        relative_to="first",
        share=(0.05, 0.95),
        num_classes=None,
    )


@pytest.mark.parametrize("normalise", [False, True])
def test_equals_the_whole_image_solve_inside_the_drawn_square(pairs, normalise):
    """`interpolate` itself faces SciPy; here the block, its place and the label are on trial."""
    targets, sources, _ = pairs
    shape = targets.shape[1:3]
    # Centres anywhere, so that squares are cut off by the border.
    found = jax.jit(jax.vmap(lambda *args: pii(*args, core_fraction=1.0, normalise=normalise)))(
        KEYS, targets, sources
    )
    squares = jax.jit(jax.vmap(lambda key: square_of(key, shape)))(KEYS)
    inside = jax.vmap(lambda s: patches.within(s.spans, shape))(squares)
    expected = jax.jit(jax.vmap(lambda *args: interpolate(*args, normalise=normalise)))(
        targets, sources, inside, squares.share
    )
    assert_allclose(found.image, expected, atol=2e-6)
    border = np.pad(np.ones((shape[0] - 2, shape[1] - 2), bool), 1)[None, ..., None]
    inside = np.asarray(inside) & border
    untouched = ~inside[..., 0]
    assert_array_equal(found.image[untouched], targets[untouched])
    changed = np.any(
        np.floor(found.image / np.float32(1e-3)) != np.floor(targets / np.float32(1e-3)),
        -1,
        keepdims=True,
    )
    share = np.asarray(squares.share)[:, None, None, None]
    assert_array_equal(found.label, np.where(inside & changed, share, 0))
    assert np.mean(np.asarray(found.label)[inside] > 0) > 0.9
    assert not np.any(found.label_std)
    assert any(
        start == 0 or stop == n
        for span, n in zip(squares.spans, shape, strict=True)
        for start, stop in zip(span.start, span.stop, strict=True)
    )


def test_stays_in_the_range_of_each_target(pairs):
    targets = 0.4 + 0.1 * pairs[0]
    images = jax.jit(
        jax.vmap(lambda *args: pii(*args, normalise=True, half_width=(0.3, 0.4), share=(1, 1)))
    )(KEYS, targets, pairs[1]).image
    for image, target in zip(images, targets, strict=True):
        assert target.min() <= image.min()
        assert image.max() <= target.max()
    assert any(np.sum(x == t.min()) > 1 for x, t in zip(images, targets, strict=True))


def test_cubes_in_volumes_equal_the_whole_volume_solve():
    """`interpolate` itself faces SciPy in a ball."""
    noise = ndimage.gaussian_filter(np.random.default_rng(2).random((2, 13, 16, 15, 1)), 1)
    target, source = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    shape = target.shape[:3]
    both = jax.jit(
        lambda key: (
            pii(key, target, source, core_fraction=1.0, half_width=(0.2, 0.35)),
            square_of(key, shape, half_width=(0.2, 0.35)),
        )
    )
    solve = jax.jit(lambda mask, share: interpolate(target, source, mask, share))
    clipped = 0
    for key in KEYS:
        found, cube = both(key)
        inside = np.asarray(patches.within(cube.spans, shape))
        assert_allclose(found.image, solve(inside, cube.share), atol=2e-6)
        clipped += any(
            span.start == 0 or span.stop == n for span, n in zip(cube.spans, shape, strict=True)
        )
        free = np.zeros((*shape, 1), bool)
        free[1:-1, 1:-1, 1:-1] = inside[1:-1, 1:-1, 1:-1]
        assert_array_equal(found.image[~free], target[~free])
        assert set(np.unique(found.label[free])) <= {0, np.float32(cube.share)}
        assert np.mean(found.label[free] > 0) > 0.9
        assert not np.any(found.label[~free])
    assert clipped > 0


def test_all_squares_at_once_equal_one_after_the_other(pairs, monkeypatch):
    """Accelerators take the other way through `pii`; here the processor takes it too."""
    targets, sources, foregrounds = (np.repeat(x, 3, axis=0) for x in pairs)
    foregrounds[1] = False  # an empty one in between
    keys = jax.random.split(jax.random.key(4), len(targets))

    def both_ways():
        task = jax.vmap(lambda key, *pair, body: pii(key, *pair, foreground=body))
        return jax.tree.map(np.asarray, jax.jit(task)(keys, targets, sources, body=foregrounds))

    one_by_one = both_ways()
    assert_array_equal(one_by_one.image[1], targets[1])
    sides = [
        np.ptp(np.flatnonzero(label.any((1, 2)))) + 1 for label in one_by_one.label if label.any()
    ]
    limits = block_sizes(24)
    assert set(np.searchsorted(limits, sides)) == set(range(len(limits)))  # a square in each
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    for x, y in zip(both_ways(), one_by_one, strict=True):
        assert_allclose(x, y, atol=1e-6)
