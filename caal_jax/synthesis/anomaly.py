"""What every synthesis task returns, and what it asks of its images."""

from typing import NamedTuple

import jax

from caal_jax.errors import InputError


class Anomaly(NamedTuple):
    """A corrupted image and where it is corrupted.

    image: (H, W, C) float32. label: (H, W, 1), foreign share or anomaly strength, 0 where the
    image is as it was. label_std: (H, W, 1) >= 0, how much raters disagree; 0 where the task
    knows one rater only.
    """

    image: jax.Array
    label: jax.Array
    label_std: jax.Array


def check_pair(target, source, foreground):
    """Raises InputError unless the three arrays are one example."""
    if target.ndim != 3 or target.shape != source.shape:
        raise InputError(
            "target and source",
            found=f"shapes {target.shape} and {source.shape}",
            expected="two images of one shape (H, W, C)",
            remedy="Lift the task over batches with jax.vmap.",
        )
    if foreground is not None and foreground.shape != (*target.shape[:2], 1):
        raise InputError(
            "foreground",
            found=f"shape {foreground.shape}",
            expected=f"{(*target.shape[:2], 1)}",
            remedy="Pass one mask for all channels, with a last axis of 1.",
        )


def check_choice(field, value, choices):
    if value not in choices:
        raise InputError(
            field,
            found=repr(value),
            expected=f"one of {', '.join(map(repr, choices))}",
            remedy="Correct the option.",
        )
