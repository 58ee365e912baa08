"""Where an anomaly goes and how large it is: draws shared by the tasks, and cutting blocks out."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Span(NamedTuple):
    """Pixels start .. stop - 1 along one axis; empty where stop <= start."""

    start: jax.Array
    stop: jax.Array


class Square(NamedTuple):
    """A square of the image, clipped at its border, and the foreign share inside."""

    rows: Span
    columns: Span
    share: jax.Array


def half_widths(length, fractions):
    """The smallest and largest half-width in pixels for an axis of `length` pixels (static)."""
    smallest = max(1, round(fractions[0] * length))
    return smallest, max(smallest, round(fractions[1] * length) - 1)


def draw_square(
    key, shape, *, foreground, core_fraction, half_width, relative_to, share, num_classes
):
    """FPI's draw: centre, half-width and foreign share, all uniform.

    shape: (H, W). foreground: (H, W, 1) bool or None. The centre is any foreground pixel, or,
    without a foreground, any pixel of the central `core_fraction` of each axis. half_width: its
    limits as fractions of the first axis, or of the shorter one (`relative_to` "first", "min").
    share: the limits of the foreign share; with num_classes K it is one of 1/(K-1) .. 1 instead.
    """
    where, size, mix = draw_uniforms(key, (2,), (), ())
    centre, exists = pick_centre(where, shape, foreground, core_fraction)
    smallest, largest = half_widths(square_length(shape, relative_to), half_width)
    # Without any foreground pixel the square is empty.
    half = jnp.where(exists, pick_integer(size, smallest, largest + 1), 0)
    if num_classes is None:
        foreign = share[0] + (share[1] - share[0]) * mix
    else:
        foreign = 1 - pick_integer(mix, 0, num_classes - 1) / (num_classes - 1)
    rows, columns = (
        Span(jnp.maximum(c - half, 0), jnp.minimum(c + half, n))
        for c, n in zip(centre, shape, strict=True)
    )
    return Square(rows, columns, foreign)


def square_length(shape, relative_to):
    return shape[0] if relative_to == "first" else min(shape)


def draw_uniforms(key, *shapes):
    """Independent numbers of [0, 1), one array for each shape.

    They come from one flat draw: each call of the generator, and each of its odd shapes, would
    add up to a second to the compilation of the training step.
    """
    sizes = [math.prod(shape) for shape in shapes]
    flat = jax.random.uniform(key, (sum(sizes),))
    parts = jnp.split(flat, np.cumsum(sizes[:-1]))
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def pick_integer(uniform, low, high):
    """A number of [0, 1) to a whole number low .. high - 1, all equally likely."""
    return low + jnp.floor(uniform * (high - low)).astype(jnp.int32)


def pick_normal(uniform):
    """Numbers of [0, 1) to standard normal ones, by the inverse of their distribution."""
    # 0 would become minus infinity; the nearest other value is 2^-23.
    return jax.scipy.special.ndtri(jnp.maximum(uniform, 2.0**-24))


def pick_centre(uniforms, shape, foreground, core_fraction):
    """Two numbers of [0, 1) to a pixel (2,) of foreground or core, and whether it has any."""
    if foreground is not None:
        return pick_pixel(uniforms, foreground[..., 0]), jnp.any(foreground)
    first, stop = np.array([core(n, core_fraction) for n in shape]).T
    return pick_integer(uniforms, first, stop), True


def core(length, core_fraction):
    """The central share of an axis as the first and the last + 1 pixel (static)."""
    first = round((1 - core_fraction) * length / 2)
    return first, max(first + 1, length - first)


def pick_pixel(uniforms, mask):
    """Two numbers of [0, 1) to a True pixel (2,) of `mask` (H, W), all equally likely.

    A row is picked by its number of pixels, then one of them: no sampling over H x W numbers.
    Without any True pixel the answer means nothing.
    """
    row = _pick_weighted(uniforms[0], jnp.sum(mask, axis=1))
    return jnp.stack([row, _pick_weighted(uniforms[1], mask[row])])


def _pick_weighted(uniform, counts):
    cumulative = jnp.cumsum(counts.astype(jnp.int32))
    rank = pick_integer(uniform, 0, cumulative[-1])
    return jnp.minimum(jnp.sum(cumulative <= rank), len(counts) - 1)


def inside(rows, columns, shape):
    """The rectangle as a mask (H, W, 1)."""
    row, column = jnp.arange(shape[0])[:, None, None], jnp.arange(shape[1])[None, :, None]
    return (
        (row >= rows.start)
        & (row < rows.stop)
        & (column >= columns.start)
        & (column < columns.stop)
    )


def differs(before, after, tolerance):
    """Where any channel changed (H, W, 1), seen in steps of `tolerance`; None sees everything."""
    if tolerance is not None:
        before, after = jnp.floor(before / tolerance), jnp.floor(after / tolerance)
    return jnp.any(before != after, axis=-1, keepdims=True)
