"""Truth that is published as numbers: boxes and discs, drawn onto the grid of their image."""

import dataclasses

import numpy as np

from caal_jax.data.case import Entry


def box_mask(shape, boxes):
    """Bool (H, W), true inside any (left, top, right, bottom) in pixels, right and bottom excluded.

    A pixel belongs to a box if its centre does; what lies outside the image is cut off.
    """
    y, x = np.ogrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for left, top, right, bottom in boxes:
        rows = (y + 0.5 >= top) & (y + 0.5 < bottom)
        mask |= rows & (x + 0.5 >= left) & (x + 0.5 < right)
    return mask


def disc_mask(shape, *, x, y, radius_px):
    """Bool (H, W), true where a pixel is at most `radius_px` from column x, row y."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius_px**2


def amend(entry, *, mask=None, spacing_mm=None, convert=None):
    """An entry whose case gets what only a table knows.

    mask, spacing_mm: functions from the image's shape (H, W) to its mask and to the (row, column)
    size of a pixel; convert: a function of the whole image.
    """

    def load():
        case = entry.load()
        if convert is not None:
            case = dataclasses.replace(case, image=convert(case.image))
        if mask is not None:
            case = dataclasses.replace(case, mask=mask(case.image.shape[:-1]))
        if spacing_mm is not None:
            spacing = tuple(spacing_mm(case.image.shape[:-1]))
            geometry = dataclasses.replace(case.geometry, spacing_mm=spacing)
            case = dataclasses.replace(case, geometry=geometry)
        return case

    return Entry(entry.case_id, load, entry.paths)
