"""Test-time augmentation: views of an image that the answer can be mapped back from exactly."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from caal_jax.errors import InputError

# Odd, so that no strided convolution sees a shifted image as it saw the plain one.
SHIFT_PX = 3


class View(NamedTuple):
    """Flips of rows (up and down) and columns (left and right), then a shift in pixels."""

    flip_rows: int = 0
    flip_columns: int = 0
    down_px: int = 0
    right_px: int = 0


PLAIN = View()
VIEWS = {
    "none": (),
    "mirror": (View(flip_columns=1),),
    "flips": (View(flip_columns=1), View(flip_rows=1), View(1, 1)),
    "shifts": tuple(
        View(down_px=SHIFT_PX * down, right_px=SHIFT_PX * right)
        for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ),
}


def read_views(text):
    """The views that `config.augment` names, the plain one first: (V, 4) int32, rows as `View`.

    text: one of `VIEWS`, or several joined by "+", as in "mirror+shifts"; a view that two of them
    share counts once. Raises `InputError` for other names.
    """
    names = text.split("+")
    if not set(names) <= VIEWS.keys():
        raise InputError(
            "config.augment",
            found=repr(text),
            expected=" or ".join(map(repr, VIEWS)) + ", or some joined by '+'",
            remedy="Choose among these.",
        )
    chosen = dict.fromkeys([PLAIN, *(view for name in names for view in VIEWS[name])])
    return np.array(list(chosen), np.int32)


def look(view, images):
    """Images (..., H, W, C) as a view (4,) shows them; the view may be a traced array.

    What a shift moves beyond one border comes in at the other, so that nothing is lost; the seam
    lies on the border of the original image. Volumes (..., D, H, W, C) keep their slice order.
    """
    flipped = jnp.where(view[0], images[..., ::-1, :, :], images)
    flipped = jnp.where(view[1], flipped[..., ::-1, :], flipped)
    return jnp.roll(flipped, (view[2], view[3]), (-3, -2))


def look_back(view, maps):
    """The inverse of `look`, bit for bit: maps (..., H, W, C) of a view, on the original grid."""
    moved = jnp.roll(maps, (-view[2], -view[3]), (-3, -2))
    moved = jnp.where(view[1], moved[..., ::-1, :], moved)
    return jnp.where(view[0], moved[..., ::-1, :, :], moved)
