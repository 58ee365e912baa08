"""Foreign patch interpolation: a square or cube in which two healthy images are mixed."""

import jax.numpy as jnp

from caal_jax.synthesis import patches
from caal_jax.synthesis.anomaly import Anomaly, check_choice, check_pair


def fpi(
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
):
    """Mixes one square of `source` into `target` at the same place; the label is its share.

    target, source: (H, W, C) float32 in [0, 1], or volumes (D, H, W, C), where the square is a
        cube. foreground: bool, their shape with one channel; the square's centre is drawn there
        (anywhere in the central `core_fraction` of each axis without one), and the label is 0
        outside. An empty foreground leaves the image as it is.
    core_fraction: 0.5 for brain and 0.8 for abdomen and chest in the published code.
    half_width: limits of the square's half side, fractions of the first axis, or of the shorter
        one with relative_to="min".
    share: limits of the foreign share, or with num_classes K one of 1/(K-1), 2/(K-1) .. 1: the
        class is then label * (K - 1), 0 for background.
    tolerance: pixels where both images agree, rounded down to multiples of it, get label 0; None
        asks for equality (published: 1e-3 for abdomen, None for brain).
    Returns Anomaly; image float32 in [0, 1], label 0 or the share, label_std 0. The same key with
    the images exchanged makes the twin sample of the paper.
    Paper: Tan et al., Detecting Outliers with Foreign Patch Interpolation, 2022,
    arXiv:2011.04197. Reference: its code, whose lambda is 1 - share; the test restates it.
    """
    check_pair(target, source, foreground)
    check_choice("relative_to", relative_to, ("first", "min"))
    square = patches.draw_square(
        key,
        target.shape[:-1],
        foreground=foreground,
        core_fraction=core_fraction,
        half_width=half_width,
        relative_to=relative_to,
        share=share,
        num_classes=num_classes,
    )
    inside = patches.within(square.spans, target.shape[:-1])
    image = jnp.where(inside, (1 - square.share) * target + square.share * source, target)
    changed = inside & patches.differs(target, source, tolerance)
    if foreground is not None:
        changed &= foreground
    label = jnp.where(changed, square.share, 0.0)
    return Anomaly(image, label, jnp.zeros_like(label))
