"""The square keeps shapes in mm and moves nothing."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.data.letterbox import letterbox, unletterbox


def blob(shape, centre, sigma_px):
    rows, columns = np.indices(shape)
    distance = ((rows - centre[0]) / sigma_px[0]) ** 2 + ((columns - centre[1]) / sigma_px[1]) ** 2
    return np.exp(-distance / 2).astype(np.float32)


def centroid(image):
    rows, columns = np.indices(image.shape)
    return np.array([(rows * image).sum(), (columns * image).sum()]) / image.sum()


SHAPES = [
    ((100, 60), (1.0, 1.0)),
    ((60, 100), (1.0, 1.0)),
    ((50, 50), (3.0, 1.0)),
    ((200, 90), (0.5, 2.0)),
    ((31, 47), (1.0, 1.0)),
    ((64, 64), (1.0, 1.0)),
]


@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
@pytest.mark.parametrize("size", [64, 129])
def test_round_trip_moves_nothing(shape, spacing, size):
    # Round in mm, so that it is round in the square too.
    radius_mm = 0.06 * max(shape[0] * spacing[0], shape[1] * spacing[1])
    centre = np.array([0.4 * shape[0], 0.55 * shape[1]])
    image = blob(shape, centre, (radius_mm / spacing[0], radius_mm / spacing[1]))[..., None]
    square, place = letterbox(image, size=size, spacing_mm=spacing)
    assert square.shape == (size, size, 1)
    assert square.dtype == np.float32
    # Pixel centres lie at half integers.
    scale = np.array([place.rows / shape[0], place.columns / shape[1]])
    want = (centroid(image[..., 0]) + 0.5) * scale - 0.5 + [place.top, place.left]
    assert_allclose(centroid(square[..., 0] - image.min()), want, atol=0.1)
    back = unletterbox(square, place)
    assert back.shape == image.shape
    assert_allclose(centroid(back[..., 0]), centroid(image[..., 0]), atol=0.15)


def test_shape_in_mm_is_kept():
    image = blob((50, 90), (25, 45), (4, 12))[..., None]  # a disc at 3 mm x 1 mm
    square, place = letterbox(image, size=150, spacing_mm=(3.0, 1.0))
    assert_allclose(place.spacing_mm, 1.0)
    assert (place.rows, place.columns) == (150, 90)
    rows, columns = np.indices(square.shape[:2])
    centre = centroid(square[..., 0])
    spread = [
        np.sqrt(((axis - c) ** 2 * square[..., 0]).sum() / square.sum())
        for axis, c in zip((rows, columns), centre, strict=True)
    ]
    assert_allclose(spread[0], spread[1], rtol=0.05)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_type_padding_and_box(dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(7, 100, (20, 40, 3)).astype(dtype)
    square, place = letterbox(image, size=40, spacing_mm=(1.0, 1.0))
    assert square.dtype == dtype
    assert (place.top, place.left, place.rows, place.columns) == (10, 0, 20, 40)
    assert_array_equal(square[10:30], image)
    assert (square[:10] == image.min()).all()
    assert (square[30:] == image.min()).all()
    assert_array_equal(unletterbox(square.astype(np.float32), place), image)


def test_shrinking_averages():
    image = np.random.default_rng(0).random((64, 32, 1), np.float32)
    square, place = letterbox(image, size=16, spacing_mm=(1.0, 1.0))
    means = image.reshape(16, 4, 8, 4).mean(axis=(1, 3))
    assert_allclose(square[:, place.left : place.left + 8, 0], means, atol=1e-6)


def test_map_without_channels_and_thin_images():
    square, place = letterbox(np.ones((1, 500, 1), np.uint8), size=32, spacing_mm=(1.0, 1.0))
    assert place.rows == 1
    assert unletterbox(square[..., 0].astype(np.float32), place).shape == (1, 500)
