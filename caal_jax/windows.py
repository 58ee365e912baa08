"""Whole volumes through a network that sees patches: overlapping windows, blended."""

import collections
import itertools
import math

import numpy as np

from caal_jax.data.volumes import cut
from caal_jax.errors import InputError

SMALLEST_SIDE = 8  # of a patch, in voxels
OVERLAP = 0.5  # of neighbouring windows, at least
SIGMA = 1 / 8  # of the blending weights, in sides of the patch; both numbers are nnU-Net's


def read_patch_size(config):
    """`config.patch_size` as sides (D, H, W) in voxels, or None for a run on slices.

    Raises `InputError` unless it is empty or three whole numbers, as in "32,32,32".
    """
    text = config.get("patch_size", "")  # older runs have no such field
    if not text:
        return None
    sides = [part.strip() for part in text.split(",")]
    if len(sides) != 3 or not all(side.isdecimal() for side in sides):
        sides = [0]
    patch = tuple(map(int, sides))
    if min(patch) < SMALLEST_SIDE:
        raise InputError(
            "config.patch_size",
            found=repr(text),
            expected=f"three sides in voxels, {SMALLEST_SIDE} or more each (slices, rows, columns),"
            " as in 32,32,32",
            remedy="Correct it, or leave it empty for a run on slices.",
        )
    return patch


def windows_of(length, side):
    """Windows along one axis: [(start, weights (side,) float32)].

    They overlap by OVERLAP or more; the weights are Gaussian and add up to one at every voxel.
    """
    count = 1 + math.ceil((length - side) / (side * (1 - OVERLAP)))
    starts = np.linspace(0, length - side, count).round().astype(int)
    middle = (side - 1) / 2
    bell = np.exp(-0.5 * ((np.arange(side) - middle) / (SIGMA * side)) ** 2)
    total = np.zeros(length)
    for start in starts:
        total[start : start + side] += bell
    return [(start, np.float32(bell / total[start : start + side])) for start in starts]


def sweep(answer, volume, foreground, patch, batch):
    """Yields the blended maps of a volume, one slice (K, H, W) float32 after the other.

    answer(windows (batch, *patch, C), weights (batch, *patch), inside (batch, *patch, 1)) -> maps
    (batch, K, *patch); weights: what each voxel counts in the blend; inside: foreground. Every call
    is of one shape: the last one repeats windows, with weights of zero. volume: (D, H, W, C), no
    side shorter than the patch's; foreground: (D, H, W, 1). Never more maps are held than the
    slices of one patch.
    """
    axes = [windows_of(n, side) for n, side in zip(volume.shape, patch, strict=False)]
    rows, first = collections.deque(), 0
    windows = list(itertools.product(*axes))
    for begin in range(0, len(windows), batch):
        chosen = windows[begin : begin + batch]
        corners = [tuple(int(start) for start, _ in window) for window in chosen]
        weights = np.zeros((batch, *patch), np.float32)
        for k, ((_, a), (_, b), (_, c)) in enumerate(chosen):
            weights[k] = a[:, None, None] * b[None, :, None] * c[None, None, :]
        fill = [corners[min(k, len(corners) - 1)] for k in range(batch)]
        images = np.stack([cut(volume, corner, patch) for corner in fill])
        inside = np.stack([cut(foreground, corner, patch) for corner in fill])
        maps = answer(images, weights, inside)
        for corner, part, weight in zip(corners, maps, weights, strict=False):
            while first < corner[0]:
                yield rows.popleft()
                first += 1
            while len(rows) < patch[0]:
                rows.append(np.zeros((len(part), *volume.shape[1:3]), np.float32))
            across = tuple(slice(a, a + n) for a, n in zip(corner[1:], patch[1:], strict=True))
            for row, values in zip(rows, np.moveaxis(part * weight, 1, 0), strict=True):
                row[(slice(None), *across)] += values
    yield from rows
