"""Blends against float64 sparse solves of the formulas, and against OpenCV."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from caal_jax.errors import InputError
from caal_jax.synthesis import poisson
from caal_jax.synthesis.poisson import blend_dst, blend_mask, interpolate, seamless_clone

# Compiled once for each shape; one test works eagerly.
compiled_blend = jax.jit(blend_dst, static_argnames="mixed")
compiled_mask = jax.jit(jax.vmap(blend_mask))
compiled_interpolate = jax.jit(interpolate, static_argnames="normalise")

NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def smooth(seed, shape, sigma=2.0):
    sigmas = [sigma] * (len(shape) - 1) + [0]
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), sigmas)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def without_rim(mask):
    return np.pad(mask[(slice(1, -1),) * mask.ndim], 1)


def dirichlet(target, source, inside, guide):
    """f with sum_q f(p) - f(q) = sum_q guide(p, q), p inside, and f = target elsewhere, float64.

    One channel, any number of axes; guide(target_p - target_q, source_p - source_q, move) with
    move(x) the neighbours' x, and move.forward whether they come after p.
    """
    target, source = target.astype(float), source.astype(float)
    number = np.full(target.shape, -1)
    number[inside] = np.arange(inside.sum())
    count = inside.sum()
    matrix, right = sparse.diags_array([2.0 * target.ndim] * count), np.zeros(count)
    for axis in range(target.ndim):
        for step in (-1, 1):

            def move(x, axis=axis, step=step):
                return np.roll(x, step, axis)

            move.forward = step == -1
            right += guide(target - move(target), source - move(source), move)[inside]
            q = move(number)[inside]
            right += np.where(q < 0, move(target)[inside], 0)
            p = np.flatnonzero(q >= 0)
            matrix = matrix - sparse.coo_array((np.ones(len(p)), (p, q[p])), (count, count))
    out = target.copy()
    out[inside] = spsolve(matrix.tocsc(), right)
    return out


def reference_interpolate(target, source, mask, alpha, normalise):
    def guide(own, foreign, _):
        own, foreign = own * (1 if normalise else 1 - alpha), foreign * alpha
        return np.where(np.abs(own) > np.abs(foreign), own, foreign)

    solved = dirichlet(target, source, without_rim(mask), guide)
    return np.clip(solved, target.min(), target.max())


def mix(own, foreign, weight, mixed):
    if mixed:
        foreign = np.where(np.abs(own) >= np.abs(foreign), own, foreign)
    return own + weight * (foreign - own)


def reference_blend(target, source, mask, mixed):
    """The whole array is solved; the weight of an edge is that of its upper or left end."""
    weight = without_rim(mask.astype(float))

    def guide(own, foreign, move):
        return mix(own, foreign, weight if move.forward else move(weight), mixed)

    return dirichlet(target, source, without_rim(np.ones(mask.shape, bool)), guide)


def reference_mask(target, source, mask, mixed=False):
    """Only the mask is solved; the weight of an edge is the larger one of its ends."""
    weight = without_rim(mask.astype(float))

    def guide(own, foreign, move):
        return mix(own, foreign, np.maximum(weight, move(weight)), mixed)

    return dirichlet(target, source, weight > 0, guide)


@pytest.mark.parametrize(
    ("size", "mixed"),
    [((3, 3), False), ((16, 7), True), ((96, 95), True), ((96, 95), False), ((12, 7, 9), True)],
)
def test_blend_solves_the_rectangle(size, mixed):
    target, source = smooth(0, (*size, 2)), 3 * smooth(1, (*size, 2))
    mask = np.random.default_rng(2).random(size).astype(np.float32)  # soft, up to the border
    blended = compiled_blend(target, source, mask, mixed=mixed)
    for c in range(2):
        expected = reference_blend(target[..., c], source[..., c], mask, mixed)
        assert_allclose(blended[..., c], expected, atol=1e-5)
    rim = ~without_rim(np.ones(size, bool))
    assert_array_equal(blended[rim], target[rim])


def shapes(size):
    """Hard masks of every outline: full, ellipse, corner, scattered, split, one pixel, none."""
    row, column = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    rng = np.random.default_rng(3)
    return np.stack(
        [
            np.ones(size, bool),
            ((row - 0.5) / 0.4) ** 2 + ((column - 0.4) / 0.3) ** 2 < 1,
            (row > 0.6) | (column < 0.3),
            rng.random(size) > 0.6,
            (np.abs(row - 0.5) > 0.2) & (column > 0.3) & (column < 0.7),
            (row == 8 / size[0]) & (column == 5 / size[1]),
            np.zeros(size, bool),
        ]
    )


def test_only_the_mask_is_solved_whatever_its_outline():
    size = (33, 28)
    hard = shapes(size)
    soft = hard * np.random.default_rng(4).random(hard.shape)
    masks = np.concatenate([hard, soft]).astype(np.float32)
    targets = np.stack([smooth(k, (*size, 1)) for k in range(len(masks))])
    sources = np.stack([smooth(k, (*size, 1), 1) for k in range(50, 50 + len(masks))])
    blended = compiled_mask(targets, sources, masks)
    for target, source, mask, found in zip(
        targets[..., 0], sources[..., 0], masks, blended[..., 0], strict=True
    ):
        assert_allclose(found, reference_mask(target, source, mask), atol=1e-5)
        inside = without_rim(mask) > 0
        assert_array_equal(found[~inside], target[~inside])
    # One pixel alone: the mean of its neighbours and the four differences.
    assert np.sum(blended[5] != targets[5]) == 1


def test_large_ellipses_and_channels_keep_float32_accuracy():
    size = (256, 240)
    mask = shapes(size)[1]
    target, source = smooth(5, (*size, 2), 4), smooth(6, (*size, 2))
    found = jax.jit(lambda *args: blend_mask(*args, mixed=True))(target, source, mask)
    for c in range(2):
        expected = reference_mask(target[..., c], source[..., c], mask, mixed=True)
        assert_allclose(found[..., c], expected, atol=1e-5)


def test_volumes_are_solved_inside_a_ball():
    size = (14, 11, 9)
    ball = np.sum((np.indices(size).T - np.array([6, 5, 4])) ** 2, -1).T < 4.2**2
    target, source = smooth(7, (*size, 1)), smooth(8, (*size, 1))
    expected = reference_mask(target[..., 0], source[..., 0], ball)
    assert_allclose(jax.jit(blend_mask)(target, source, ball)[..., 0], expected, atol=1e-5)
    found = compiled_interpolate(target, source, ball, 0.6)
    expected = reference_interpolate(target[..., 0], source[..., 0], ball, 0.6, False)
    assert_allclose(found[..., 0], expected, atol=1e-5)


def boxes(size):
    masks = np.zeros((4, *size), bool)
    masks[0, 26:, 5:9] = masks[1, 2:30, 3:15] = masks[2] = True
    masks[3] = shapes(size)[1]
    return masks


@pytest.mark.parametrize("normalise", [False, True])
def test_interpolation_solves_the_formula(normalise):
    size, alpha = (33, 28), np.float32(0.37)
    target, source = smooth(3, (*size, 1)), smooth(4, (*size, 1))
    for mask in boxes(size):
        inside = without_rim(mask)
        expected = reference_interpolate(target[..., 0], source[..., 0], mask, 0.37, normalise)
        found = compiled_interpolate(target, source, mask, alpha, normalise=normalise)
        assert_allclose(found[..., 0], expected, atol=1e-5)
        assert np.abs(expected - target[..., 0])[inside].max() > 1e-3
        assert_array_equal(found[~inside], target[~inside])


def test_eager_and_vmapped_solves_agree_with_it_too():
    size = (33, 28)
    masks, alphas = boxes(size), np.array([0.2, 0.9, 0.5, 0.7], np.float32)
    targets = np.stack([smooth(k, (*size, 1)) for k in range(4)])
    sources = np.stack([smooth(k, (*size, 1)) for k in range(5, 9)])
    interpolated = jax.jit(jax.vmap(interpolate))(targets, sources, masks, alphas)
    blended = jax.jit(jax.vmap(blend_dst))(targets, sources, masks)
    for k in range(4):
        pair = targets[k, ..., 0], sources[k, ..., 0]
        expected = reference_interpolate(*pair, masks[k], alphas[k].astype(float), False)
        assert_allclose(interpolated[k, ..., 0], expected, atol=1e-5)
        assert_allclose(blended[k, ..., 0], reference_blend(*pair, masks[k], False), atol=1e-5)
    alone = blend_dst(targets[1], sources[1], masks[1])
    assert_allclose(alone, blended[1], atol=1e-6)


def opencv_masks(size):
    """What OpenCV gets: hard, soft and split masks up to the border, odd and tiny ones."""
    full, ellipse, corner, _, split, dot, empty = 255 * shapes(size).astype(np.uint8)
    soft = ndimage.gaussian_filter(np.random.default_rng(5).random(size), 3)
    soft = np.where(soft > np.median(soft), 255 * soft / soft.max(), 0).astype(np.uint8)
    odd, tiny = np.zeros((2, *size), np.uint8)
    odd[7:28, 3:20], tiny[10:13, 20:23] = 130, 255
    return np.stack([full, ellipse, corner, split, soft, odd, tiny, dot, empty])


@pytest.mark.parametrize("mixed", [False, True])
def test_seamless_clone_is_that_of_opencv(mixed):
    size = (45, 52)
    masks = opencv_masks(size)
    levels = [
        np.stack([np.round(255 * smooth(k, (*size, 3), s)) for k in range(n, n + len(masks))])
        for n, s in ((0, 3), (20, 1))
    ]
    targets, sources = (x.astype(np.uint8) for x in levels)
    found = jax.jit(jax.vmap(lambda *args: seamless_clone(*args, mixed=mixed)))(
        *(np.float32(x) / 255 for x in (targets, sources, masks))
    )
    assert found.dtype == np.float32
    flag = cv2.MIXED_CLONE if mixed else cv2.NORMAL_CLONE
    for target, source, mask, image in zip(targets, sources, masks, found, strict=True):
        rows, columns = (np.flatnonzero(without_rim(mask).any(axis)) for axis in (1, 0))
        if min(len(rows), len(columns)) < 3:
            assert_allclose(image, target / 255, atol=1e-7)
            continue
        height, width = (int(x[-1] - x[0] + 1) for x in (rows, columns))
        centre = (int(columns[0]) + width // 2, int(rows[0]) + height // 2)
        # OpenCV 5 overwrites the mask it is given.
        expected = cv2.seamlessClone(source, target, mask.copy(), centre, flag).astype(float)
        off = np.abs(np.floor(255 * image + 1e-3) - expected)
        assert off.max() <= 1
        assert off.mean() < 0.01
        if height > 9:
            assert np.abs(expected - target).max() > 10
        rim = np.ones(size, bool)
        rim[rows[1] : rows[-1], columns[1] : columns[-1]] = False
        assert_array_equal(image[rim], np.float32(target[rim]) / np.float32(255))


def test_volumes_have_no_opencv_rule():
    with pytest.raises(InputError, match="blend_mask"):
        seamless_clone(np.zeros((4, 4, 4, 1)), np.zeros((4, 4, 4, 1)), np.zeros((4, 4, 4)))


@pytest.mark.parametrize(("size", "first"), [(94, 0), (94, 3), (150, 3)])
def test_every_basis_is_the_sine_transform(size, first):
    """The largest size is beyond the table of matrices."""
    counts = np.arange(size - first + 1)
    assert (size > poisson.LARGEST_TABLE) == (size == 150)
    basis = jax.jit(jax.vmap(lambda count: poisson.sine_basis(first, count, size)))(counts)
    assert_array_equal(basis.transposed, np.swapaxes(basis.matrix, 1, 2))
    found = np.asarray(basis.matrix)
    for count in counts:
        p = np.arange(1, count + 1)
        expected = np.zeros((size, size))
        expected[:count, first : first + count] = np.sqrt(2 / (count + 1)) * np.sin(
            np.pi * np.outer(p, p) / (count + 1)
        )
        assert_allclose(found[count], expected, atol=2e-7)
    # With a constant size the compiler may divide less exactly.
    constant = jax.jit(lambda: poisson.sine_basis(first, size - first, size).matrix)()
    assert_allclose(constant, found[-1], atol=2e-7)


def test_a_size_known_at_run_time_equals_the_exact_size():
    field = jnp.asarray(np.random.default_rng(5).normal(size=(30, 2, 25)), jnp.float32)
    solve_at = jax.jit(
        lambda top, left, height, width: poisson.solve(
            field, poisson.sine_basis(top, height, 30), poisson.sine_basis(left, width, 25)
        )
    )
    for top, left, height, width in [(0, 0, 30, 25), (3, 5, 11, 20), (29, 0, 1, 1), (4, 4, 0, 7)]:
        found = np.asarray(solve_at(top, left, height, width))
        inside = np.zeros(field.shape, bool)
        inside[top : top + height, :, left : left + width] = True
        assert_array_equal(found[~inside], 0)
        padded = np.pad(found, ((1, 1), (0, 0), (1, 1)))
        laplacian = sum(np.roll(padded, step, (0, 2)) for step in NEIGHBOURS) - 4 * padded
        assert_allclose(laplacian[1:-1, :, 1:-1][inside], field[inside], atol=2e-5)


def test_large_blends_keep_float32_accuracy():
    # The five-point Laplacian of the answer must give the field back: no sparse solve needed.
    rng = np.random.default_rng(6)
    e = np.pad(ndimage.gaussian_filter(rng.normal(size=(254, 201)), 4), 1)
    e /= np.ptp(e)
    field = sum(np.roll(e, step, (0, 1)) for step in NEIGHBOURS) - 4 * e
    field = jnp.asarray(field[1:-1, None, 1:-1], jnp.float32)
    found = jax.jit(
        lambda field: poisson.solve(
            field, poisson.sine_basis(0, 254, 254), poisson.sine_basis(0, 201, 201)
        )
    )(field)
    assert_allclose(found[:, 0], e[1:-1, 1:-1], atol=1e-5)


def test_identical_or_offset_sources_change_nothing():
    target = smooth(7, (33, 28, 1))
    mask = np.ones((33, 28), bool)
    for source in (target, target + 0.25):
        assert_allclose(compiled_blend(target, source, mask), target, atol=1e-6)
        assert_allclose(compiled_blend(target, source, mask, mixed=True), target, atol=1e-6)
        assert_allclose(
            compiled_interpolate(target, source, mask, np.float32(1)), target, atol=1e-6
        )
    assert_allclose(
        compiled_interpolate(target, smooth(8, (33, 28, 1)), mask, np.float32(0)), target, atol=1e-6
    )


def test_published_form_flattens_texture_and_normalise_does_not():
    target = smooth(9, (33, 28, 1))
    mask, half = np.ones((33, 28), bool), np.float32(0.5)
    assert np.abs(compiled_interpolate(target, target, mask, half) - target).max() > 0.05
    assert_allclose(
        compiled_interpolate(target, target, mask, half, normalise=True), target, atol=1e-6
    )


def test_a_flat_target_ignores_an_affine_source():
    target = np.full((33, 28, 1), 0.5, np.float32)
    row, column = np.mgrid[:33, :28]
    source = (0.01 * row + 0.02 * column)[..., None].astype(np.float32)
    found = compiled_interpolate(target, source, np.ones((33, 28), bool), np.float32(0.6))
    assert_allclose(found, target, atol=1e-6)


def test_mismatched_arrays_are_refused():
    image = np.zeros((8, 8, 1), np.float32)
    with pytest.raises(InputError, match="one shape"):
        blend_dst(image, image[1:], np.ones((8, 8), bool))
    with pytest.raises(InputError, match="mask"):
        interpolate(image, image, np.ones((8, 7), bool), 0.5)
