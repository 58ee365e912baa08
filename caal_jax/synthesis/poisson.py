"""Poisson blending by dense sine transforms: exact, batched, and made of matrix products only.

A blend of `source` into `target` solves for the change e of the target, which is 0 on the rim:

    L e = div(v - D target),  v the wanted gradients, D forward differences, L = div D

On an axis-aligned rectangle or cuboid the sine basis diagonalises L, so e takes two small matrix
products along each axis. The rectangle's size may be known only at run time: rows and columns of
the basis beyond it are 0. A mask of any other outline takes a few such solves (`solve_inside`).

Blocks are (rows, fields, columns), volumes (slices, rows, fields, columns), with colour channels or
raters as fields: all of them pass through one matrix product at either end, and no axis has to be
moved in between. Bases, one for each spatial axis, come in this order.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.errors import InputError


class SineBasis(NamedTuple):
    """The unknowns along one axis: neighbours in a row, among `size` pixels.

    matrix: (size, size), frequency by position, orthonormal rows; 0 for frequencies and positions
    that do not exist. transposed: the same, position by frequency. eigenvalues: (size,) of minus
    the second difference.
    """

    matrix: jax.Array
    transposed: jax.Array
    eigenvalues: jax.Array


def sine_basis(first, count, size):
    """The basis of unknowns first .. first + count - 1 among `size` pixels; count may be 0.

    first, count: integers, traced or not; size: static, at most 4096.
    """
    if size > LARGEST_TABLE:
        return _computed_basis(first, count, size)
    matrices, eigenvalues = _bases(size)
    pick = functools.partial(jax.lax.dynamic_index_in_dim, index=count, keepdims=False)
    matrix = transposed = pick(jnp.asarray(matrices))  # symmetric before they are moved
    if not isinstance(first, int) or first > 0:
        matrix, transposed = jnp.roll(matrix, first, 1), jnp.roll(transposed, first, 0)
    return SineBasis(matrix, transposed, pick(jnp.asarray(eigenvalues)))


LARGEST_TABLE = 128  # 8 MB of constants; above it, computing costs little beside the solve


@functools.lru_cache(maxsize=8)
def _bases(size):
    """The matrix (size, size) and eigenvalues (size,) of each possible count, stacked."""
    matrices, eigenvalues = np.zeros((size + 1, size, size)), np.ones((size + 1, size))
    for count in range(1, size + 1):
        p = np.arange(1, count + 1)
        phase = np.outer(p, p) % (2 * count + 2)
        matrices[count, :count, :count] = np.sin(np.pi / (count + 1) * phase)
        matrices[count] *= np.sqrt(2 / (count + 1))
        eigenvalues[count, :count] = 4 * np.sin(np.pi / 2 * p / (count + 1)) ** 2
    return matrices.astype(np.float32), eigenvalues.astype(np.float32)


def _computed_basis(first, count, size):
    """The same for sizes too large for a table of matrices: a table of sines does."""
    frequency = jnp.arange(1, size + 1)[:, None]
    position = jnp.arange(1, size + 1)[None, :] - first
    # Reduced in whole numbers before the sine: sin(pi 300 / 7) in float32 would lose digits. The
    # rounded quotient can be off by one (% would not, but does not vectorise): one step either way.
    period = 2 * (count + 1)
    product = frequency * position
    phase = product - jnp.floor(product.astype(jnp.float32) / period).astype(jnp.int32) * period
    phase += jnp.where(phase < 0, period, 0) - jnp.where(phase >= period, period, 0)
    sines = jnp.asarray(_sines(size))
    index = jnp.clip(phase, 0, sines.shape[1] - 1) + count * sines.shape[1]
    sines = sines.reshape(-1).at[index].get(mode="promise_in_bounds")
    exists = (frequency <= count) & (position >= 1) & (position <= count)
    matrix = jnp.where(exists, sines * jnp.sqrt(2 / (count + 1)), 0.0)
    frequency = frequency[:, 0]
    eigenvalues = 4 * jnp.sin((jnp.pi / 2) * frequency / (count + 1)) ** 2
    eigenvalues = jnp.where(frequency <= count, eigenvalues, 1.0)
    return SineBasis(matrix, matrix.T, eigenvalues)


@functools.lru_cache(maxsize=32)
def _sines(size):  # (size + 1, 2 size + 2): sin(pi k / (count + 1)) for each possible count
    count = np.arange(size + 1)[:, None]
    return np.sin(np.pi * np.arange(2 * size + 2) / (count + 1)).astype(np.float32)


def solve(field, *bases):
    """e with L e = field on the unknowns and exactly 0 elsewhere.

    field: (P, K, Q) or (O, P, K, Q) float32, ignored where there is no unknown; bases: one
    SineBasis for each spatial axis, of its size. Returns the shape of field.
    """
    axes = spatial(field)
    spectrum = field
    for axis, basis in zip(axes, bases, strict=True):
        spectrum = _along(axis, spectrum, basis.matrix, basis.transposed)
    e = -spectrum / sum(
        jnp.expand_dims(basis.eigenvalues, [k for k in range(field.ndim) if k != axis])
        for axis, basis in zip(axes, bases, strict=True)
    )
    for axis, basis in zip(axes, bases, strict=True):
        e = _along(axis, e, basis.transposed, basis.matrix)
    return e


def _along(axis, block, matrix, transposed):
    """The matrix applied to each line along one spatial axis."""
    # Half-precision products, the default on accelerators, would show as bands in the image.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if axis == block.ndim - 1:
        return product("...j,jq->...q", block, transposed)
    return product("pi,i...->p..." if axis == 0 else "pi,oikj->opkj", matrix, block)


def solve_inside(field, inside):
    """e with L e = field where `inside` is True and exactly 0 elsewhere, whatever its outline.

    Conjugate gradients, preconditioned with `solve` on the rectangle around: for a filled
    rectangle the start is the answer already.

    field: (P, K, Q) or (O, P, K, Q) float32; inside: the same with one field for all, bool.
    Returns the shape of field.
    """
    axes = spatial(field)
    bases = [sine_basis(first, count, n) for (first, count), n in _spans(inside)]
    inside = jnp.broadcast_to(inside, field.shape)
    rim = [(int(axis in axes),) * 2 for axis in range(field.ndim)]

    def precondition(residual):
        return jnp.where(inside, solve(residual, *bases), 0.0)

    def laplacian(e):
        return jnp.where(inside, divergence(*gradient(jnp.pad(e, rim))), 0.0)

    def total(product):
        return jnp.sum(product, axes, keepdims=True)

    def largest(z):
        return jnp.max(jnp.abs(z), axes, keepdims=True)

    def unfinished(state):
        count, _, _, z, _, _ = state
        return (count < MOST_STEPS) & jnp.any(largest(z) > enough)

    def step(state):
        count, e, residual, z, direction, size = state
        image = laplacian(direction)
        length = size / _nonzero(total(direction * image))
        e, residual = e + length * direction, residual - length * image
        z = precondition(residual)
        new_size = total(residual * z)
        direction = z + new_size / _nonzero(size) * direction
        return count + 1, e, residual, z, direction, new_size

    e = precondition(jnp.where(inside, field, 0.0))
    # z is at least as large as the error that is left; float32 has nothing to add below this.
    enough = TOLERANCE * largest(e)
    residual = jnp.where(inside, field, 0.0) - laplacian(e)
    z = precondition(residual)
    start = 0, e, residual, z, z, total(residual * z)
    return jax.lax.while_loop(unfinished, step, start)[1]


MOST_STEPS, TOLERANCE = 300, 2e-6


def _nonzero(number):
    # A field that is 0 everywhere has nothing to divide by, and nothing to divide.
    return jnp.where(number == 0, 1.0, number)


def gradient(block):
    """Forward differences of a block along each spatial axis, one shorter along its own."""
    return tuple(jnp.diff(block, axis=axis) for axis in spatial(block))


def divergence(*edges):
    """Backward differences of a gradient, summed: the block without its rim."""
    axes = spatial(edges[0])
    return sum(
        jnp.diff(edge[_inner(edge, but=axis)], axis=axis)
        for axis, edge in zip(axes, edges, strict=True)
    )


def spatial(block):
    """The axes of a block, without that of its fields."""
    return (*range(block.ndim - 2), block.ndim - 1)


def _inner(block, but=None):
    """Index of a block without its rim, along all spatial axes or all but one."""
    axes = [axis for axis in spatial(block) if axis != but]
    return tuple(slice(1, -1) if axis in axes else slice(None) for axis in range(block.ndim))


def inner(block):
    """A block without its rim."""
    return block[_inner(block)]


def _ends(block):
    """For each spatial axis, the block at the first and at the second end of each edge."""
    for axis in spatial(block):
        last = block.shape[axis] - 1
        yield tuple(jax.lax.slice_in_dim(block, k, last + k, axis=axis) for k in (0, 1))


def _spans(inside):
    """First and number of pixels of the bounding box along each spatial axis, and its length."""
    axes = spatial(inside)
    for axis, n in zip(axes, (inside.shape[axis] for axis in axes), strict=True):
        used = jnp.any(inside, [k for k in range(inside.ndim) if k != axis])
        first = jnp.argmax(used)
        count = jnp.where(jnp.any(used), n - jnp.argmax(used[::-1]) - first, 0)
        yield (first, count), n


def stronger(target_edge, source_edge):
    """Mixed gradients, edge by edge; ties keep the target."""
    return jnp.where(jnp.abs(target_edge) >= jnp.abs(source_edge), target_edge, source_edge)


def interpolated(target_edge, source_edge, alpha, normalise):
    """PII's guidance: the weighted stronger edge, ties to the source; see `interpolate`."""
    own = target_edge if normalise else (1 - alpha) * target_edge
    foreign = alpha * source_edge
    return jnp.where(jnp.abs(own) > jnp.abs(foreign), own, foreign)


def blend_dst(target, source, mask, *, mixed=False):
    """Clones the gradients of `source` into `target` where `mask` says so.

    The rectangle is the whole array: its outermost pixels keep the target's values, and every
    other pixel may move, inside the mask or not. A mask value between 0 and 1 mixes the
    gradients. With `mixed`, each difference along each axis is the stronger of the two images'.

    target, source: (H, W, C) or (D, H, W, C) float; mask: the same with one channel or without
        the channel axis, in [0, 1], its outermost pixels are ignored.
    Returns target's shape, float32, not clipped.
    Paper: Perez, Gangnet, Blake, Poisson image editing, 2003, doi:10.1145/882262.882269.
    Reference: pie-torch 0.0.1 `blend_dst_numpy`, up to float32; the test restates it in SciPy.
    """
    target, source, mask = _clone_blocks(target, source, mask)
    weight = jnp.broadcast_to(_without_rim(mask), target.shape)
    field = clone_field(target, source, weight, mixed=mixed)
    e = solve(field, *(sine_basis(0, field.shape[k], field.shape[k]) for k in spatial(field)))
    return from_block(target.at[_inner(target)].add(e))


def _first(start, end):
    """The pixel that a forward difference starts from, which it belongs to."""
    return start


def clone_field(target, source, weight, *, mixed, of_edge=_first):
    """What `solve` needs for a clone; blocks of one shape, `weight` with a zero rim.

    of_edge: an edge's weight from those of its first and second end.
    """

    def change(target_edge, source_edge, ends):
        guide = stronger(target_edge, source_edge) if mixed else source_edge
        return of_edge(*ends) * (guide - target_edge)

    return divergence(*map(change, gradient(target), gradient(source), _ends(weight)))


def blend_mask(target, source, mask, *, mixed=False):
    """Clones the gradients of `source` into those pixels of `target` that `mask` marks.

    The problem as first posed: pixels with a mask of 0 and the outermost ones keep the target's
    values, whatever the mask's outline. Mask values below 1 mix the gradients of both images, on
    each edge by the larger value of its two ends, so that edges across the outline of a hard mask
    are the source's. With `mixed`, each edge is the stronger of both images'.

    target, source: (H, W, C) or (D, H, W, C) float; mask: the same with one channel or without
        the channel axis, in [0, 1].
    Returns target's shape, float32, not clipped.
    Paper: Perez, Gangnet, Blake, Poisson image editing, 2003, doi:10.1145/882262.882269, equations
    7 and, mixed, 12. The test solves them with SciPy.
    """
    target, source, mask = _clone_blocks(target, source, mask)
    mask = _without_rim(mask)
    weight = jnp.broadcast_to(mask, target.shape)
    field = clone_field(target, source, weight, mixed=mixed, of_edge=jnp.maximum)
    e = solve_inside(field, inner(mask > 0))
    return from_block(target.at[_inner(target)].add(e))


def seamless_clone(target, source, mask, *, mixed=False):
    """What OpenCV's seamlessClone makes of images that lie on each other already.

    The mask's outermost pixels are set to 0, and the rectangle around what is left is solved: its
    rim keeps the target's values, its other pixels may move, in the mask or not. A 7 x 7 erosion
    keeps the source's gradients three pixels away from the mask's outline; mask values below 1 mix
    the gradients. With `mixed` a pixel takes both of the source's differences where they differ
    from each other by more than the target's do. An empty mask and one less than 3 pixels high or
    wide (where OpenCV raises) leave the target as it is.

    target, source: (H, W, C) float in [0, 1]; mask: (H, W) or (H, W, 1) in [0, 1] or bool.
    Returns (H, W, C) float32 in [0, 1].
    Reference: cv2.seamlessClone 5.0, NORMAL_CLONE and MIXED_CLONE, called with the point that
    leaves the source where it is. OpenCV cuts its result down to whole grey levels; we do not.
    """
    target, source, mask = _clone_blocks(target, source, mask)
    if target.ndim != 3:
        raise InputError(
            "target and source",
            found=f"shape {from_block(target).shape}",
            expected="pictures (H, W, C)",
            remedy="Clone volumes with blend_dst or blend_mask: OpenCV has no rule for them.",
        )
    mask = _without_rim(mask)
    # The rim of the mask's bounding box is known; seen without the array's own rim it starts
    # where the unknowns do.
    bases = [
        sine_basis(first, jnp.maximum(count - 2, 0), n - 2)
        for (first, count), n in _spans(mask > 0)
    ]
    weight = jnp.pad(mask, ((3, 3), (0, 0), (3, 3)))
    for axis in spatial(mask):
        n = mask.shape[axis]
        shifted = (jax.lax.slice_in_dim(weight, k, k + n, axis=axis) for k in range(7))
        weight = functools.reduce(jnp.minimum, shifted)

    # Both differences of a pixel; a pixel of the last row or column lacks one, but has no weight.
    (down, right), (source_down, source_right) = (
        (down[:, :, :-1], right[:-1]) for down, right in (gradient(target), gradient(source))
    )
    weight = weight[:-1, :, :-1]
    if mixed:
        # Grey levels tie often; as float32 they would do so by chance only.
        margin = jnp.abs(source_down - source_right) - jnp.abs(down - right)
        weight = jnp.where(margin > 1e-6, weight, 0.0)
    down = jnp.pad(weight * (source_down - down), ((0, 0), (0, 0), (0, 1)))
    right = jnp.pad(weight * (source_right - right), ((0, 1), (0, 0), (0, 0)))
    e = solve(divergence(down, right), *bases)
    return from_block(jnp.clip(target.at[_inner(target)].add(e), 0.0, 1.0))


def interpolate(target, source, mask, alpha, *, normalise=False):
    """Poisson image interpolation: the target, with a share of the source's gradients.

    On each edge between neighbours p and q inside the mask, or across its outline, the wanted
    difference is the larger of (1 - alpha) (target_p - target_q) and alpha (source_p - source_q).
    The published form weakens all gradients that way, the target's own too; a network can learn
    to see that. `normalise` keeps the target's gradients at full strength.

    target, source: (H, W, C) or (D, H, W, C) float; mask: bool, the same with one channel or
        without the channel axis, of any outline; the outermost pixels never change.
    alpha: scalar in [0, 1], the foreign share.
    Returns target's shape, float32, clipped to the target's own range.
    Paper: Tan et al., Detecting Outliers with Poisson Image Interpolation, 2021,
    doi:10.1007/978-3-030-87240-3_56. Reference: its code; we clip per image, it per batch.
    """
    target, source, mask = _clone_blocks(target, source, mask)
    field = interpolate_field(target, source, alpha, normalise)
    e = solve_inside(field, inner(mask > 0))
    changed = target.at[_inner(target)].add(e)
    return from_block(jnp.clip(changed, jnp.min(target), jnp.max(target)))


def interpolate_field(target, source, alpha, normalise):
    """What `solve` needs for `interpolate`, from blocks of one shape."""
    edges = zip(gradient(target), gradient(source), strict=True)
    return divergence(*(interpolated(*pair, alpha, normalise) - pair[0] for pair in edges))


def to_block(image):  # (..., W, C) -> (..., C, W) float32
    return jnp.moveaxis(jnp.asarray(image, jnp.float32), -1, -2)


def from_block(block):
    return jnp.moveaxis(block, -2, -1)


def _without_rim(mask):
    return jnp.zeros_like(mask).at[_inner(mask)].set(inner(mask))


def _clone_blocks(target, source, mask):
    if target.ndim not in (3, 4) or target.shape != source.shape or min(target.shape[:-1]) < 3:
        raise InputError(
            "target and source",
            found=f"shapes {target.shape} and {source.shape}",
            expected="two arrays of one shape (H, W, C) or (D, H, W, C), at least 3 pixels a side",
            remedy="Cut both to the same rectangle; lift over batches with jax.vmap.",
        )
    spatial = target.shape[:-1]
    if mask.shape not in (spatial, (*spatial, 1)):
        raise InputError(
            "mask",
            found=f"shape {mask.shape}",
            expected=f"{spatial}, with or without a last axis of 1",
            remedy="Pass one mask for all channels.",
        )
    return to_block(target), to_block(source), to_block(mask.reshape((*spatial, 1)))
