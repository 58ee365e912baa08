"""Tiles of an image, each with a mapping of its own, and the mix of neighbouring mappings.

Both libraries of reference share this plan: a histogram per tile, a table per tile made from it,
and for every pixel the tables of the surrounding tile centres, weighted by nearness.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.preprocess.histogram import count, take


class Axis(NamedTuple):
    """One spatial axis cut into tiles, all static.

    length: pixels of the image; size: pixels of a tile; number: tiles.
    before: (length,) int, for each pixel the tile centre before it, counted from 1; 0 stands for
        the first tile once more and number + 1 for the last, beyond the outermost centres.
    weight: (length,) float32 in [0, 1], of the centre after it.
    """

    length: int
    size: int
    number: int
    before: np.ndarray
    weight: np.ndarray


def tile_histograms(bins, axes, num_bins):
    """Histograms of all tiles, (tiles of each axis..., num_bins) int32.

    bins: unsigned integers below num_bins, one array axis for each of `axes`. Where the last tile
    reaches beyond the image, the image goes on mirrored, its edge pixels not repeated.
    """
    for axis, plan in enumerate(axes):
        extra = plan.size * plan.number - plan.length
        if extra:
            mirrored = np.pad(np.arange(plan.length), (0, extra), mode="reflect")[plan.length :]
            bins = jnp.concatenate([bins, jnp.take(bins, mirrored, axis=axis)], axis)
    tile = np.zeros((), np.uint32)
    for plan in axes:
        along = np.repeat(np.arange(plan.number, dtype=np.uint32), plan.size)
        tile = tile[..., None] * np.uint32(plan.number) + along
    shape = tuple(plan.number for plan in axes)
    index = bins.astype(jnp.uint32) + jnp.asarray(tile * np.uint32(num_bins))
    total = int(np.prod(shape)) * num_bins
    return count(index.reshape(-1), None, total).reshape(*shape, num_bins)


def surrounding_values(maps, bins, axes, bits):
    """What the tables of all surrounding tile centres make of each pixel.

    maps: (tiles of each axis..., num_bins) integers of `bits` bits; bins: as above, unextended.
    Returns 2^d int32 arrays of the shape of `bins`, the last axis' two centres beside each other:
    (before, before), (before, after), (after, before), (after, after) in 2-D.
    """
    # A look-up costs the same for any width of table entry: as many tables as fit share one.
    d = len(axes)
    shared = 2 if d > 1 and bits <= 8 else 1
    num_bins = maps.shape[-1]
    beyond = [(1, 1)] * (d - shared) + [(0, 0)] * (shared + 1)
    tables = jnp.pad(maps.astype(jnp.uint32), beyond, mode="edge")
    for number in range(shared):
        tables = _pairs(tables, d - 1 - number, bits * 2**number)
    values = []
    for corner in itertools.product((0, 1), repeat=d - shared):
        place = np.zeros((), np.uint32)
        for plan, one, size in zip(axes, (*corner, 0, 0), tables.shape, strict=False):
            place = place[..., None] * np.uint32(size) + (plan.before + one).astype(np.uint32)
        index = bins.astype(jnp.uint32) + jnp.asarray(place * np.uint32(num_bins))
        found = take(tables.reshape(-1), index.reshape(-1)).reshape(bins.shape)
        for part in range(2**shared):
            values.append((found >> (bits * part) & (2**bits - 1)).astype(jnp.int32))
    return values


def _pairs(tables, axis, bits):
    """Every table beside the next, the outermost ones beside themselves: one table more."""
    size = tables.shape[axis]

    def pair(before, after):
        before, after = (jax.lax.slice_in_dim(tables, *s, axis=axis) for s in (before, after))
        return before | after << bits

    first, last = (0, 1), (size - 1, size)
    # The concatenation comes last: XLA would repeat anything else for each pixel.
    inner = pair((0, size - 1), (1, size))
    return jnp.concatenate([pair(first, first), inner, pair(last, last)], axis)
