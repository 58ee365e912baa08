"""Poisson image interpolation: a square in which the gradients of two healthy images are mixed."""

import jax
import jax.numpy as jnp

from caal_jax.synthesis import patches, poisson
from caal_jax.synthesis.anomaly import Anomaly, check_choice, check_pair


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
    # All work happens on a block that holds the largest square and its rim.
    largest = 2 * patches.half_widths(patches.square_length(shape, relative_to), half_width)[1]
    sizes = [min(largest + 2, n) for n in shape]
    starts, bases = zip(
        *(_place(*place) for place in zip(square.spans, sizes, shape, strict=True)), strict=True
    )
    corner, block = (*starts, 0), (*sizes, target.shape[-1])
    old, foreign = (
        poisson.to_block(jax.lax.dynamic_slice(image, corner, block)) for image in (target, source)
    )
    field = poisson.interpolate_field(old, foreign, square.share, normalise)
    change = poisson.solve(field, *bases)
    old = poisson.from_block(poisson.inner(old))
    change = poisson.from_block(change)
    new = patches.clip_to(old + change, target)
    label = jnp.where(patches.differs(old, new, tolerance), square.share, 0.0)

    corner = (*(start + 1 for start in starts), 0)
    image = jax.lax.dynamic_update_slice(target, new, corner)
    label = jax.lax.dynamic_update_slice(jnp.zeros((*shape, 1)), label, corner)
    if foreground is not None:
        label = jnp.where(foreground, label, 0.0)
    return Anomaly(image, label, jnp.zeros_like(label))


def _place(span, size, length):
    """Where the block starts along one axis, and the basis of the square inside its rim."""
    first, stop = jnp.maximum(span.start, 1), jnp.minimum(span.stop, length - 1)
    start = jnp.clip(first - 1, 0, length - size)
    count = jnp.maximum(stop - first, 0)
    return start, poisson.sine_basis(first - start - 1, count, size - 2)
