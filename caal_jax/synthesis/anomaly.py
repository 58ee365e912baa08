"""What every synthesis task returns, and what it asks of its images."""

from typing import NamedTuple

import jax

from caal_jax.errors import InputError


class Anomaly(NamedTuple):
    """A corrupted image and where it is corrupted.

    image: (H, W, C) or (D, H, W, C) float32. label: (..., 1), foreign share or anomaly strength, 0
    where the image is as it was. label_std: (..., 1) >= 0, how much raters disagree; 0 where the
    task knows one rater only.
    """

    image: jax.Array
    label: jax.Array
    label_std: jax.Array


SMALLEST_SIDE = 3  # a pixel to change, and a rim


def check_pair(target, source, foreground):
    """Raises InputError unless the three arrays are one example, a picture or a volume."""
    if (
        target.ndim not in (3, 4)
        or target.shape != source.shape
        or min(target.shape[:-1]) < SMALLEST_SIDE
    ):
        raise InputError(
            "target and source",
            found=f"shapes {target.shape} and {source.shape}",
            expected="two images of one shape (H, W, C), or volumes (D, H, W, C), at least "
            f"{SMALLEST_SIDE} pixels a side",
            remedy="Lift the task over batches with jax.vmap.",
        )
    if foreground is not None and foreground.shape != (*target.shape[:-1], 1):
        raise InputError(
            "foreground",
            found=f"shape {foreground.shape}",
            expected=f"{(*target.shape[:-1], 1)}",
            remedy="Pass one mask for all channels, with a last axis of 1.",
        )


def check_picture(name, image, remedy):
    """Raises InputError, which ends in the remedy, for a volume."""
    if image.ndim != 3:
        raise InputError(name, found=f"shape {image.shape}", expected="(H, W, C)", remedy=remedy)


def check_choice(field, value, choices):
    if value not in choices:
        raise InputError(
            field,
            found=repr(value),
            expected=f"one of {', '.join(map(repr, choices))}",
            remedy="Correct the option.",
        )
