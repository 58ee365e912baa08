"""Where an anomaly goes and how large it is: draws shared by the tasks, and cutting blocks out."""

import functools
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
    """A square of the image or cube of the volume, clipped at its border, and the foreign share.

    spans: one for each spatial axis.
    """

    spans: tuple[Span, ...]
    share: jax.Array


def half_widths(length, fractions):
    """The smallest and largest half-width in pixels for an axis of `length` pixels (static)."""
    smallest = max(1, round(fractions[0] * length))
    return smallest, max(smallest, round(fractions[1] * length) - 1)


def draw_square(
    key, shape, *, foreground, core_fraction, half_width, relative_to, share, num_classes
):
    """FPI's draw: centre, half-width and foreign share, all uniform.

    shape: (H, W) or (D, H, W). foreground: (*shape, 1) bool or None. The centre is any foreground
    pixel, or, without a foreground, any pixel of the central `core_fraction` of each axis.
    half_width: its limits as fractions of the first axis, or of the shortest one (`relative_to`
    "first", "min"). share: the limits of the foreign share; with num_classes K it is one of
    1/(K-1) .. 1 instead.
    """
    where, size, mix = draw_uniforms(key, (len(shape),), (), ())
    centre, exists = pick_centre(where, shape, foreground, core_fraction)
    smallest, largest = half_widths(square_length(shape, relative_to), half_width)
    # Without any foreground pixel the square is empty.
    half = jnp.where(exists, pick_integer(size, smallest, largest + 1), 0)
    if num_classes is None:
        foreign = share[0] + (share[1] - share[0]) * mix
    else:
        foreign = 1 - pick_integer(mix, 0, num_classes - 1) / (num_classes - 1)
    spans = tuple(
        Span(jnp.maximum(c - half, 0), jnp.minimum(c + half, n))
        for c, n in zip(centre, shape, strict=True)
    )
    return Square(spans, foreign)


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
    """A number of [0, 1) per axis to a pixel of foreground or core, and whether it has any."""
    if foreground is not None:
        return pick_pixel(uniforms, foreground[..., 0]), jnp.any(foreground)
    first, stop = np.array([core(n, core_fraction) for n in shape]).T
    return pick_integer(uniforms, first, stop), True


def core(length, core_fraction):
    """The central share of an axis as the first and the last + 1 pixel (static)."""
    first = round((1 - core_fraction) * length / 2)
    return first, max(first + 1, length - first)


def pick_pixel(uniforms, mask):
    """A number of [0, 1) per axis to a True pixel (axes,) of `mask`, all equally likely.

    A row is picked by its number of pixels, then one of them: no sampling over H x W numbers.
    Without any True pixel the answer means nothing.
    """
    mask = jnp.asarray(mask)  # a NumPy array cannot be looked up at a traced pixel
    pixel = []
    for uniform in uniforms:
        pixel.append(_pick_weighted(uniform, jnp.sum(mask, range(1, mask.ndim))))
        mask = mask[pixel[-1]]
    return jnp.stack(pixel)


def _pick_weighted(uniform, counts):
    cumulative = jnp.cumsum(counts.astype(jnp.int32))
    rank = pick_integer(uniform, 0, cumulative[-1])
    return jnp.minimum(jnp.sum(cumulative <= rank), len(counts) - 1)


def within(spans, shape):
    """The rectangle or cuboid as a mask (*shape, 1)."""
    free = [
        (index >= span.start) & (index < span.stop)
        for span, index in zip(spans, indices((*shape, 1)), strict=False)
    ]
    return functools.reduce(jnp.logical_and, free)


def indices(shape):
    """The coordinate along each axis of an array, shaped to broadcast with it."""
    return [jax.lax.broadcasted_iota(jnp.int32, _only(shape, k), k) for k in range(len(shape))]


def _only(shape, axis):
    return tuple(n if k == axis else 1 for k, n in enumerate(shape))


def differs(before, after, tolerance):
    """Where any channel changed (..., 1), seen in steps of `tolerance`; None sees everything."""
    if tolerance is not None:
        before, after = jnp.floor(before / tolerance), jnp.floor(after / tolerance)
    return jnp.any(before != after, axis=-1, keepdims=True)


def clip_to(image, target):
    """The image, clipped to the target's own range."""
    low, high = jnp.min(target), jnp.max(target)
    # Not jnp.clip: XLA:CPU makes one slow kernel of it and the two reductions (six times slower).
    image = jnp.where(image < low, low, image)
    return jnp.where(image > high, high, image)


def by_batch(function):
    """A function of one example from one of a batch, which `jax.vmap` calls once for all of them.

    For loops over the examples that an accelerator would unroll into one program but a processor
    had better run one after the other. function: of arrays with a leading axis, to the same.
    """
    lifted = jax.custom_batching.custom_vmap(function)

    @lifted.def_vmap
    def rule(size, is_batched, *arguments):
        def merge(x, batched):
            x = x if batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape((-1, *x.shape[2:]))

        out = lifted(*jax.tree.map(merge, arguments, tuple(is_batched)))
        out = jax.tree.map(lambda x: x.reshape((size, -1, *x.shape[1:])), out)
        return out, jax.tree.map(lambda _: True, out)

    def alone(*arguments):
        out = lifted(*jax.tree.map(lambda x: jnp.asarray(x)[None], arguments))
        return jax.tree.map(lambda x: x[0], out)

    return alone
