"""Any image into a fixed square and back, without a shift and with its shape in mm kept."""

from typing import NamedTuple

import cv2
import numpy as np


class Placement(NamedTuple):
    """Where an image of height x width pixels lies in its square.

    top, left, rows, columns: the box that the image fills, in pixels of the square.
    spacing_mm: side of a pixel of the square; the same along both axes, up to the rounding of
    rows and columns to whole pixels.
    """

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int
    spacing_mm: float


def placement(height, width, *, size, spacing_mm):
    """The `Placement` of a height x width image with (row, column) spacing_mm in size x size."""
    tall, wide = height * spacing_mm[0], width * spacing_mm[1]
    pixel = max(tall, wide) / size
    rows = min(max(round(tall / pixel), 1), size)
    columns = min(max(round(wide / pixel), 1), size)
    return Placement(height, width, (size - rows) // 2, (size - columns) // 2, rows, columns, pixel)


def letterbox(image, *, size, spacing_mm):
    """Scales an image so that its longer side in mm fills the square, and pads the other.

    image: (H, W, C) uint8, uint16, int16 or float32. spacing_mm: its (row, column) pixel size.
    Returns (size, size, C) of the same type, padded with the image's minimum, and the
    `Placement`. Shrinking averages over areas, enlarging is bilinear; pixel centres lie at half
    integers, as in OpenCV, so nothing moves.
    """
    height, width, channels = image.shape
    place = placement(height, width, size=size, spacing_mm=spacing_mm)
    square = np.full((size, size, channels), image.min(), image.dtype)
    box = square[place.top : place.top + place.rows, place.left : place.left + place.columns]
    # One axis at a time: INTER_AREA is an average only where it shrinks, and anisotropic
    # spacing can shrink one axis and enlarge the other.
    box[...] = _stretch(_stretch(image, rows=place.rows), columns=place.columns)
    return square, place


def unletterbox(values, place):
    """Takes a map from the square back to the pixels of the image (bilinear).

    values: (size, size) or (size, size, C) float32; returns (H, W) or (H, W, C).
    """
    box = values[place.top : place.top + place.rows, place.left : place.left + place.columns]
    box = np.ascontiguousarray(box, np.float32)
    out = cv2.resize(box, (place.width, place.height), interpolation=cv2.INTER_LINEAR)
    return out.reshape(place.height, place.width, *values.shape[2:])


def _stretch(image, *, rows=None, columns=None):
    height, width, channels = image.shape
    rows, columns = rows or height, columns or width
    shrinks = rows < height or columns < width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    out = cv2.resize(np.ascontiguousarray(image), (columns, rows), interpolation=interpolation)
    return out.reshape(rows, columns, channels)
