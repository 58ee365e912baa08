"""Poisson image interpolation: a square in which the gradients of two healthy images are mixed."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.synthesis import patches, poisson
from caal_jax.synthesis.anomaly import Anomaly, check_choice, check_pair


class Job(NamedTuple):
    """What to solve in one example.

    first, count: (axes,) first pixel and number of pixels of the square along each axis, without
    those on the image's border; 0 where there is no square. share: foreign share. low, high: the
    target's range.
    """

    first: jax.Array
    count: jax.Array
    share: jax.Array
    low: jax.Array
    high: jax.Array


def pii(
    key,
    target,
    source,
    *,
    foreground=None,
    core_fraction=0.8,
    half_width=(0.05, 0.2),
    relative_to="first",
    share=(0.05, 0.95),
    num_classes=None,
    tolerance=1e-3,
    normalise=False,
):
    """Rebuilds one square or cube of `target` from mixed gradients; the label is its share.

    Square, share and foreground are drawn as in `fpi`; the blend is `poisson.interpolate`, which
    has no seam at the square's outline and is clipped to the target's own range. The image's
    outermost pixels never change.

    target, source: (H, W, C), or a volume (D, H, W, C), float32 in [0, 1], at least 3 pixels a
        side; foreground: the same with one channel, bool.
    tolerance: the label is 0 where the image did not change, rounded down to multiples of it;
        None asks for equality.
    normalise: False weakens the target's own gradients too, as published; True does not.
    Returns Anomaly; label 0 or the share, label_std 0. The same key with the images exchanged
    makes the twin sample of the paper.
    Paper: Tan et al., Detecting Outliers with Poisson Image Interpolation, 2021,
    doi:10.1007/978-3-030-87240-3_56. Reference: its code, except that it clips per batch.
    """
    check_pair(target, source, foreground)
    check_choice("relative_to", relative_to, ("first", "min"))
    shape = target.shape[:-1]
    square = patches.draw_square(
        key,
        shape,
        foreground=foreground,
        core_fraction=core_fraction,
        half_width=half_width,
        relative_to=relative_to,
        share=share,
        num_classes=num_classes,
    )
    first = jnp.stack([jnp.maximum(span.start, 1) for span in square.spans])
    stop = jnp.stack([span.stop for span in square.spans])
    count = jnp.maximum(jnp.minimum(stop, np.array(shape) - 1) - first, 0)
    job = Job(first, count, square.share, jnp.min(target), jnp.max(target))
    largest = 2 * patches.half_widths(patches.square_length(shape, relative_to), half_width)[1]
    paste = functools.partial(_paste, normalise=normalise, tolerance=tolerance)
    image, label = _run(paste, job, target, source, largest)
    if foreground is not None:
        label = jnp.where(foreground, label, 0.0)
    return Anomaly(image, label, jnp.zeros_like(label))


def _run(paste, job, target, source, largest):
    """Image and label of one example; no side of its square is longer than `largest` (static).

    An accelerator gets all examples of a batch at once, in blocks for the largest square. A
    processor writes one after the other into place, through its cache and in a block not much
    larger than the square: the work of a solve grows with the third power of its side.
    """

    def all_at_once(job, target, source):
        state = target[None], jnp.zeros((1, *target.shape[:-1], 1))
        image, label = paste(state, 0, job, target[None], source[None], largest)
        return image[0], label[0]

    def one_by_one(jobs, targets, sources):
        side = jnp.max(jobs.count, axis=-1)
        order, start = jnp.argsort(side), 0
        state = targets, jnp.zeros((*targets.shape[:-1], 1))
        # One loop for each size of block: a switch inside a single one would copy all images.
        for size in block_sizes(largest):

            def add(k, state, size=size):
                job = jax.tree.map(lambda x: x[order[k]], jobs)
                return paste(state, order[k], job, targets, sources, size)

            stop = jnp.sum(side <= size)
            state = jax.lax.fori_loop(start, stop, add, state)
            start = stop
        return state

    return jax.lax.platform_dependent(
        job, target, source, cpu=patches.by_batch(one_by_one), default=all_at_once
    )


def block_sizes(largest):
    """The squares' largest sides that blocks are made for (static), ascending to `largest`."""
    return [largest] if largest < 24 else [largest // 2, 3 * largest // 4, largest]


def _paste(state, example, job, targets, sources, largest, *, normalise, tolerance):
    """One example's square written into images and labels, the `state`; all of them batches.

    largest: static, no side of this square is longer.
    """
    shape, channels = targets.shape[1:-1], targets.shape[-1]
    sides = tuple(min(largest + 2, n) for n in shape)  # with a rim
    start = jnp.clip(job.first - 1, 0, np.array(shape) - np.array(sides))

    def cut(images):
        block = jax.lax.dynamic_slice(images, (example, *start, 0), (1, *sides, channels))
        return poisson.to_block(block[0])

    # Empty squares need no pixels. The branch has a second use: XLA:CPU would otherwise look up
    # each pixel anew for each of its neighbours, at four times the cost.
    nothing = jnp.zeros((*sides[:-1], channels, sides[-1]))
    old, foreign, share = jax.lax.cond(
        jnp.all(job.count > 0),
        lambda: (cut(targets), cut(sources), job.share),
        lambda: (nothing, nothing, 0.0),
    )
    first = job.first - 1 - start
    bases = [poisson.sine_basis(first[k], job.count[k], n - 2) for k, n in enumerate(sides)]
    field = poisson.interpolate_field(old, foreign, share, normalise)
    change = poisson.solve(field, *bases)
    corner = (example, *(start + 1), 0)
    before = jax.lax.dynamic_slice(targets, corner, (1, *(n - 2 for n in sides), channels))
    after = jnp.clip(before + poisson.from_block(change)[None], job.low, job.high)
    label = jnp.where(patches.differs(before, after, tolerance), job.share, 0.0)
    images, labels = state
    return (
        jax.lax.dynamic_update_slice(images, after, corner),
        jax.lax.dynamic_update_slice(labels, label, corner),
    )
