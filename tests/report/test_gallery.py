"""Case pictures: colours, outlines and checks."""

import base64
import dataclasses

import cv2
import matplotlib
import numpy as np
import pytest
from made_up_report import make_item

from caal_jax.errors import InputError
from caal_jax.report import case_picture
from caal_jax.report.gallery import (
    OUTLINE_RGB,
    UNCERTAINTY_LIMIT,
    coloured,
    outlined,
    overlaid,
    panels_of,
    png_data_uri,
    stamped,
    uncertainty_limit,
)


def altered(**fields):
    return dataclasses.replace(make_item(), **fields)


def test_colours_are_those_of_matplotlib_on_a_fixed_scale():
    values = np.linspace(0, 0.3, 50).reshape(5, 10)
    expected = matplotlib.colormaps["viridis"](np.round(255 * values / 0.3).astype(int), bytes=True)
    np.testing.assert_array_equal(coloured(values, "viridis", 0.3), expected[..., :3])


def test_a_weak_map_stays_dark():
    # Per-image scaling would paint both alike.
    weak = altered(anomaly_map=0.1 * make_item().anomaly_map)
    strong, faint = (panels_of(item, 0.1)[2].rgb for item in (make_item(), weak))
    assert strong.max() > 240
    assert faint.max() < 60


def test_values_above_the_limit_take_the_last_colour():
    np.testing.assert_array_equal(
        coloured(np.array([[0.1, 5.0]]), "viridis", 0.1),
        np.array([[matplotlib.colormaps["viridis"](255, bytes=True)[:3]] * 2]),
    )


def test_an_overlay_leaves_the_healthy_part_as_it_is():
    grey = np.full((2, 2, 3), 90, np.uint8)
    picture = overlaid(grey, np.array([[0.0, 0.25], [0.5, 1.0]]))
    np.testing.assert_array_equal(picture[0, 0], grey[0, 0])
    for at, alpha in (((0, 1), 0.425), ((1, 0), 0.85), ((1, 1), 0.85)):
        level = round(255 * {(0, 1): 0.25, (1, 0): 0.5, (1, 1): 1.0}[at])
        colour = np.array(matplotlib.colormaps["inferno"](level, bytes=True)[:3], float)
        np.testing.assert_allclose(picture[at], 90 + alpha * (colour - 90), atol=1)


def test_outline_surrounds_the_truth_and_leaves_it_visible():
    truth = np.zeros((40, 40), bool)
    truth[10:20, 12:22] = True
    grey = np.full((40, 40, 3), 90, np.uint8)
    picture = outlined(grey, truth)
    assert (picture[truth] == 90).all()
    ring = (picture == OUTLINE_RGB).all(axis=-1)
    expected = np.zeros_like(truth)
    expected[8:22, 10:24] = True
    np.testing.assert_array_equal(ring, expected & ~truth)


@pytest.mark.parametrize("size", [(900, 700), (31, 64), (1, 1)])
def test_panels_share_one_size(size):
    shapes = {panel.rgb.shape for panel in panels_of(make_item(size=size), 0.1)}
    assert len(shapes) == 1
    assert 144 <= max(shapes.pop()) <= 288


def test_a_single_abnormal_pixel_survives_shrinking():
    truth = np.zeros((900, 900), bool)
    truth[451, 333] = True
    picture = panels_of(dataclasses.replace(make_item(size=(900, 900)), truth=truth), 0.1)[1]
    assert (picture.rgb == OUTLINE_RGB).all(axis=-1).any()


def test_titles_tell_unknown_truth_from_empty_truth():
    titles = [panel.title for panel in panels_of(altered(truth=None), 0.1)]
    assert titles == ["Image", "Overlay", "Anomaly map", "Uncertainty"]
    empty = panels_of(altered(truth=np.zeros((64, 64), bool)), 0.1)
    assert empty[1].title == "Truth: nothing here"
    np.testing.assert_array_equal(empty[1].rgb, empty[0].rgb)


def test_colour_images_keep_their_colours():
    image = np.zeros((64, 64, 3), np.float32)
    image[..., 0] = 1
    assert panels_of(altered(image=image), 0.1)[0].rgb[5, 5].tolist() == [255, 0, 0]


def test_uncertainty_limit_is_common_and_round():
    assert uncertainty_limit([0.003, 0.031]) == pytest.approx(0.05)
    assert uncertainty_limit([0.003]) == pytest.approx(0.005)
    assert uncertainty_limit([0.0]) == UNCERTAINTY_LIMIT
    assert uncertainty_limit([]) == UNCERTAINTY_LIMIT


@pytest.mark.parametrize("peak", [1e-9, 0.1, 0.2, 0.5, 0.6931, 1.0, 3.0])
def test_uncertainty_limit_covers_the_peak(peak):
    limit = uncertainty_limit([peak])
    assert peak <= limit <= 2.5 * peak + 1e-12


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"anomaly_map": np.zeros((64, 64, 1))}, "anomaly_map"),
        ({"image": np.zeros((64, 63))}, "image"),
        ({"image": np.full((64, 64), 200.0)}, "image"),
        ({"truth": np.zeros((32, 32), bool)}, "truth"),
        ({"anomaly_map": np.full((64, 64), np.nan)}, "anomaly_map"),
        ({"uncertainty_map": np.full((64, 64), np.inf)}, "uncertainty_map"),
        ({"uncertainty_map": np.full((64, 64), -0.1)}, "uncertainty_map"),
    ],
)
def test_unusable_arrays_are_refused_by_name(fields, named):
    with pytest.raises(InputError, match=f"'case-1', {named}: found"):
        altered(**fields)


def test_embedded_picture_is_a_lossless_png_of_the_same_colours():
    rgb = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    head, _, code = png_data_uri(rgb).partition(",")
    assert head == "data:image/png;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(code), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decoded, rgb)


def test_stamp_is_added_below_the_picture():
    rgb = np.full((50, 80, 3), 7, np.uint8)
    picture = stamped(rgb, "phantom")
    np.testing.assert_array_equal(picture[:50], rgb)
    assert picture[50:].max() > 200


def test_case_picture_is_a_png_and_the_stamp_changes_it(tmp_path):
    case_picture(tmp_path / "plain.png", make_item())
    case_picture(tmp_path / "stamped.png", make_item(), stamp="phantom")
    plain, marked = (cv2.imread(str(tmp_path / f"{n}.png")) for n in ("plain", "stamped"))
    assert plain.shape == marked.shape
    assert plain.shape[1] > plain.shape[0] > 200
    rows, columns = np.nonzero((plain != marked).any(axis=-1))
    # The stamp sits in the lower right corner and covers no panel.
    assert rows.min() > plain.shape[0] - 40
    assert columns.min() > plain.shape[1] * 0.8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.png", "stamped.png"]


def test_case_picture_takes_any_name(tmp_path):
    # Formulas, scripts without glyphs and control characters must not warn or fail.
    name = "$\\frac{1}{$ \u75c5\u4f8b <b>\x00\u202e \u05d0\u05d1 " + "x" * 500
    case_picture(tmp_path / "odd.png", altered(case_id=name, truth=None, probability=None))
    assert cv2.imread(str(tmp_path / "odd.png")) is not None
