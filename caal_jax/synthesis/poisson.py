"""Poisson blending by dense sine transforms: exact, batched, and made of matrix products only.

A blend of `source` into `target` solves for the change e of the target, which is 0 on the rim:

    L e = div(v - D target),  v the wanted gradients, D forward differences, L = div D

On an axis-aligned rectangle the sine basis diagonalises L, so e takes four small matrix products.
The rectangle's size may be known only at run time: rows and columns of the basis beyond it are 0.

Blocks are (rows, fields, columns), with colour channels or raters as the middle axis: all fields
then pass through one matrix product on either side, and no axis has to be moved in between.
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
    that do not exist. eigenvalues: (size,) of minus the second difference.
    """

    matrix: jax.Array
    eigenvalues: jax.Array


def sine_basis(first, count, size):
    """The basis of unknowns first .. first + count - 1 among `size` pixels; count may be 0.

    first, count: integers, traced or not; size: static, at most 4096.
    """
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
    return SineBasis(matrix, jnp.where(frequency <= count, eigenvalues, 1.0))


@functools.lru_cache(maxsize=32)
def _sines(size):  # (size + 1, 2 size + 2): sin(pi k / (count + 1)) for each possible count
    count = np.arange(size + 1)[:, None]
    return np.sin(np.pi * np.arange(2 * size + 2) / (count + 1)).astype(np.float32)


def solve(divergence, rows, columns):
    """e with L e = divergence on the unknowns and exactly 0 elsewhere.

    divergence: (P, K, Q) float32, ignored where there is no unknown; rows, columns: SineBasis of
    sizes P and Q. Returns (P, K, Q).
    """
    spectrum = _dot(_dot(rows.matrix, divergence, 1, 0), columns.matrix, 2, 1)
    spectrum = -spectrum / (rows.eigenvalues[:, None, None] + columns.eigenvalues[None, None, :])
    return _dot(_dot(rows.matrix, spectrum, 0, 0), columns.matrix, 2, 0)


def _dot(a, b, axis_a, axis_b):
    # Half-precision products, the default on accelerators, would show as bands in the image.
    return jax.lax.dot_general(
        a, b, (((axis_a,), (axis_b,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    )


def gradient(block):
    """Forward differences (P - 1, K, Q) and (P, K, Q - 1) of a block (P, K, Q)."""
    return jnp.diff(block, axis=0), jnp.diff(block, axis=2)


def divergence(down, right):
    """Backward differences of a gradient, summed: (P - 2, K, Q - 2), the block without its rim."""
    return jnp.diff(down[:, :, 1:-1], axis=0) + jnp.diff(right[1:-1], axis=2)


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

    target, source: (H, W, C) float; mask: (H, W, 1) in [0, 1], its outermost pixels are ignored.
    Returns (H, W, C) float32, not clipped.
    Paper: Perez, Gangnet, Blake, Poisson image editing, 2003, doi:10.1145/882262.882269.
    Reference: pie-torch 0.0.1 `blend_dst_numpy`, up to float32; the test restates it in SciPy.
    """
    _check_clone(target, source, mask)
    target, source = to_block(target), to_block(source)
    weight = to_block(mask.reshape(*mask.shape[:2], 1))[1:-1, :, 1:-1]
    weight = jnp.broadcast_to(jnp.pad(weight, ((1, 1), (0, 0), (1, 1))), target.shape)
    height, _, width = target.shape
    field = clone_field(target, source, weight, mixed=mixed)
    e = solve(field, sine_basis(0, height - 2, height - 2), sine_basis(0, width - 2, width - 2))
    return from_block(target.at[1:-1, :, 1:-1].add(e))


def clone_field(target, source, weight, *, mixed):
    """What `solve` needs for a clone; blocks (P, K, Q), `weight` with a zero rim."""
    (down, right), (source_down, source_right) = gradient(target), gradient(source)

    def change(target_edge, source_edge, weight):
        guide = stronger(target_edge, source_edge) if mixed else source_edge
        return weight * (guide - target_edge)

    # A forward difference belongs to the pixel it starts from, and so does its weight.
    return divergence(
        change(down, source_down, weight[:-1]), change(right, source_right, weight[:, :, :-1])
    )


def interpolate(target, source, mask, alpha, *, normalise=False):
    """Poisson image interpolation: the target, with a share of the source's gradients.

    On each edge between neighbours p and q inside the mask, or across its outline, the wanted
    difference is the larger of (1 - alpha) (target_p - target_q) and alpha (source_p - source_q).
    The published form weakens all gradients that way, the target's own too; a network can learn
    to see that. `normalise` keeps the target's gradients at full strength.

    target, source: (H, W, C) float; mask: (H, W) or (H, W, 1) bool, a rectangle (of any other
        shape the bounding box is taken); the image's outermost pixels never change.
    alpha: scalar in [0, 1], the foreign share.
    Returns (H, W, C) float32, clipped to the target's own range.
    Paper: Tan et al., Detecting Outliers with Poisson Image Interpolation, 2021,
    doi:10.1007/978-3-030-87240-3_56. Reference: its code; we clip per image, it per batch.
    """
    _check_clone(target, source, mask)
    inside = jnp.asarray(mask).reshape(target.shape[:2])[1:-1, 1:-1] > 0
    rows, columns = (_span(jnp.any(inside, axis)) for axis in (1, 0))
    target, source = to_block(target), to_block(source)
    e = interpolate_change(target, source, rows, columns, alpha, normalise)
    changed = target.at[1:-1, :, 1:-1].add(e)
    return from_block(jnp.clip(changed, jnp.min(target), jnp.max(target)))


def interpolate_change(target, source, rows, columns, alpha, normalise):
    """What `interpolate` adds before clipping, from blocks (P, K, Q): (P - 2, K, Q - 2).

    rows, columns: SineBasis of the rectangle inside the block without its rim.
    """
    edges = zip(gradient(target), gradient(source), strict=True)
    changes = (interpolated(own, foreign, alpha, normalise) - own for own, foreign in edges)
    return solve(divergence(*changes), rows, columns)


def _span(used):
    """The basis from the first to the last True of `used`."""
    first = jnp.argmax(used)
    count = len(used) - jnp.argmax(used[::-1]) - first
    return sine_basis(first, jnp.where(jnp.any(used), count, 0), len(used))


def to_block(image):  # (H, W, C) -> (H, C, W) float32
    return jnp.moveaxis(jnp.asarray(image, jnp.float32), 2, 1)


def from_block(block):
    return jnp.moveaxis(block, 1, 2)


def _check_clone(target, source, mask):
    if target.ndim != 3 or target.shape != source.shape or min(target.shape[:2]) < 3:
        raise InputError(
            "target and source",
            found=f"shapes {target.shape} and {source.shape}",
            expected="two arrays of one shape (H, W, C), at least 3 x 3 pixels",
            remedy="Cut both to the same rectangle; lift over batches with jax.vmap.",
        )
    if mask.shape not in (target.shape[:2], (*target.shape[:2], 1)):
        raise InputError(
            "mask",
            found=f"shape {mask.shape}",
            expected=f"{target.shape[:2]}, with or without a last axis of 1",
            remedy="Pass one mask for all channels.",
        )
