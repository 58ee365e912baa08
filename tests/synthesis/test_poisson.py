"""Blends against float64 sparse solves of the formulas, written out edge by edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from caal_jax.errors import InputError
from caal_jax.synthesis import poisson
from caal_jax.synthesis.poisson import blend_dst, interpolate

# Compiled once for each shape; one test works eagerly.
compiled_blend = jax.jit(blend_dst, static_argnames="mixed")
compiled_interpolate = jax.jit(interpolate, static_argnames="normalise")

NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def smooth(seed, shape, sigma=2.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), (sigma, sigma, 0))
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def dirichlet(base, inside, guide):
    """f with 4 f(p) - sum f(q) = sum guide(p, q) for p inside and f = base elsewhere, float64."""
    number = np.full(base.shape, -1)
    number[inside] = np.arange(inside.sum())
    rows, columns, right = [], [], np.zeros(inside.sum())
    for p in np.argwhere(inside):
        k = number[tuple(p)]
        for step in NEIGHBOURS:
            q = p + step
            right[k] += guide(tuple(p), tuple(q))
            if inside[tuple(q)]:
                rows.append(k)
                columns.append(number[tuple(q)])
            else:
                right[k] += base[tuple(q)]
    count = len(right)
    matrix = sparse.diags_array([4.0] * count) - sparse.coo_array(
        (np.ones(len(rows)), (rows, columns)), (count, count)
    )
    out = base.copy()
    out[inside] = spsolve(matrix.tocsr(), right)
    return out


def reference_interpolate(target, source, inside, alpha, normalise):
    target, source = target.astype(float), source.astype(float)

    def guide(p, q):
        own = (target[p] - target[q]) * (1 if normalise else 1 - alpha)
        foreign = (source[p] - source[q]) * alpha
        return own if abs(own) > abs(foreign) else foreign

    solved = dirichlet(target, inside, guide)
    return np.clip(solved, target.min(), target.max())


def reference_blend(target, source, mask, mixed):
    """One channel, the whole array as rectangle; the weight of an edge is that of its upper or
    left end."""
    target, source = target.astype(float), source.astype(float)
    mask = np.pad(mask[1:-1, 1:-1].astype(float), 1)
    inside = np.pad(np.ones((target.shape[0] - 2, target.shape[1] - 2), bool), 1)

    def guide(p, q):
        start = min(p, q)
        own, foreign = target[p] - target[q], source[p] - source[q]
        if mixed and abs(own) >= abs(foreign):
            foreign = own
        return own + mask[start] * (foreign - own)

    return dirichlet(target, inside, guide)


SIZES = [(3, 3), (16, 7), (96, 95)]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_blend_solves_the_rectangle(size, mixed):
    target, source = smooth(0, (*size, 2)), 3 * smooth(1, (*size, 2))
    mask = np.random.default_rng(2).random(size).astype(np.float32)  # soft, up to the border
    blended = compiled_blend(target, source, mask, mixed=mixed)
    for c in range(2):
        expected = reference_blend(target[..., c], source[..., c], mask, mixed)
        assert_allclose(blended[..., c], expected, atol=1e-5)
    rim = np.pad(np.zeros((size[0] - 2, size[1] - 2), bool), 1, constant_values=True)
    assert_array_equal(blended[rim], target[rim])


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((40, 48), slice(0, 40), slice(0, 48)),  # the border is left out
        ((33, 20), slice(26, 33), slice(5, 9)),
        ((90, 21), slice(2, 85), slice(3, 15)),
    ],
)
def test_interpolation_solves_the_formula(size, rows, columns, normalise):
    target, source = smooth(3, (*size, 1)), smooth(4, (*size, 1))
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    alpha = np.float32(0.37)
    inside = np.pad(mask[1:-1, 1:-1], 1)
    expected = reference_interpolate(target[..., 0], source[..., 0], inside, 0.37, normalise)
    found = compiled_interpolate(target, source, mask, alpha, normalise=normalise)
    assert_allclose(found[..., 0], expected, atol=1e-5)
    assert np.abs(expected - target[..., 0])[inside].max() > 1e-3
    assert_array_equal(found[~inside], target[~inside])


def test_eager_and_vmapped_solves_agree_with_it_too():
    size = (40, 31)
    targets = np.stack([smooth(k, (*size, 1)) for k in range(2)])
    sources = np.stack([smooth(k, (*size, 1)) for k in (5, 6)])
    masks = np.zeros((2, *size), bool)
    masks[0, 4:30, 9:20], masks[1, 10:14, 2:31] = True, True
    alphas = np.array([0.2, 0.9], np.float32)
    interpolated = jax.jit(jax.vmap(interpolate))(targets, sources, masks, alphas)
    blended = jax.jit(jax.vmap(blend_dst))(targets, sources, masks)
    for k in range(2):
        pair = targets[k, ..., 0], sources[k, ..., 0]
        inside = np.pad(masks[k, 1:-1, 1:-1], 1)
        expected = reference_interpolate(*pair, inside, alphas[k].astype(float), False)
        assert_allclose(interpolated[k, ..., 0], expected, atol=1e-5)
        assert_allclose(blended[k, ..., 0], reference_blend(*pair, masks[k], False), atol=1e-5)
    one = targets[0], sources[0], masks[0]
    assert_allclose(interpolate(*one, alphas[0]), interpolated[0], atol=1e-6)


@pytest.mark.parametrize("first", [0, 3])
def test_every_basis_is_the_sine_transform(first):
    size = 94
    counts = np.arange(size - first + 1)
    found = jax.jit(jax.vmap(lambda count: poisson.sine_basis(first, count, size).matrix))(counts)
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
    target = smooth(7, (30, 30, 1))
    mask = np.ones((30, 30), bool)
    for source in (target, target + 0.25):
        assert_allclose(compiled_blend(target, source, mask), target, atol=1e-6)
        assert_allclose(compiled_blend(target, source, mask, mixed=True), target, atol=1e-6)
        assert_allclose(compiled_interpolate(target, source, mask, 1.0), target, atol=1e-6)
    assert_allclose(
        compiled_interpolate(target, smooth(8, (30, 30, 1)), mask, 0.0), target, atol=1e-6
    )


def test_published_form_flattens_texture_and_normalise_does_not():
    target = smooth(9, (30, 30, 1))
    mask = np.ones((30, 30), bool)
    assert np.abs(compiled_interpolate(target, target, mask, 0.5) - target).max() > 0.05
    assert_allclose(
        compiled_interpolate(target, target, mask, 0.5, normalise=True), target, atol=1e-6
    )


def test_a_flat_target_ignores_an_affine_source():
    target = np.full((30, 30, 1), 0.5, np.float32)
    row, column = np.mgrid[:30, :30]
    source = (0.01 * row + 0.02 * column)[..., None].astype(np.float32)
    found = compiled_interpolate(target, source, np.ones((30, 30), bool), 0.6)
    assert_allclose(found, target, atol=1e-6)


def test_mismatched_arrays_are_refused():
    image = np.zeros((8, 8, 1), np.float32)
    with pytest.raises(InputError, match="one shape"):
        blend_dst(image, image[1:], np.ones((8, 8), bool))
    with pytest.raises(InputError, match="mask"):
        interpolate(image, image, np.ones((8, 7), bool), 0.5)
