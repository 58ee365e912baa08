"""Case pictures: image, truth outline, anomaly map and uncertainty, on fixed colour scales."""

import base64
import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.colors import Normalize

from caal_jax.errors import InputError
from caal_jax.files import write_bytes
from caal_jax.report.figures import INK, figure_text, new_figure, stamp_figure, to_png
from caal_jax.report.sprites import Sprites, decoded

# Perceptually even and safe for colour-blind readers; two of them, so that nobody takes
# uncertainty for anomaly.
ANOMALY_COLOURS, UNCERTAINTY_COLOURS = "inferno", "viridis"
OUTLINE_RGB = (255, 176, 0)
TILE_PX = 288
THUMBNAIL_PX, PICTURE_PX = 96, 192
# The fixed upper end of the uncertainty colours where no common scale is given, for pictures that
# are written one by one. Mutual information (nats) and standard deviation rarely go beyond it.
UNCERTAINTY_LIMIT = 0.2


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """One case picture: 2-D arrays of one slice.

    label: 1 abnormal, 0 normal, None unknown. score: image-level anomaly score; probability: the
    calibrated probability of being abnormal, or None. verdict: "normal", "abnormal", "abstain", or
    "" where none was given. uncertainty: of the image score, or None.
    image: (H, W) or (H, W, 3) float in [0, 1], or None. truth: bool (H, W) or None.
    anomaly_map: (H, W) in [0, 1], calibrated. uncertainty_map: (H, W) >= 0, mutual information or
    standard deviation, or None. slice_text: "slice 31 of 64"; why: "best", "worst", "random".
    Raises: InputError for arrays of another shape or range.
    """

    case_id: str
    kind: str
    label: int | None
    score: float
    probability: float | None
    verdict: str
    uncertainty: float | None
    image: np.ndarray | None
    truth: np.ndarray | None
    anomaly_map: np.ndarray
    uncertainty_map: np.ndarray | None
    slice_text: str = ""
    why: str = ""

    def __post_init__(self):
        shape = self.anomaly_map.shape
        self._require(len(shape) == 2, "anomaly_map", shape, "the two axes (H, W) of one slice")
        allowed = {
            "image": (shape, (*shape, 3)),
            "uncertainty_map": (shape,),
            "truth": (shape,),
        }
        for name, shapes in allowed.items():
            array = getattr(self, name)
            if array is not None:
                expected = " or ".join(map(str, shapes))
                self._require(array.shape in shapes, name, array.shape, expected)
        for name, high in {"image": 1, "anomaly_map": 1, "uncertainty_map": math.inf}.items():
            if getattr(self, name) is None:
                continue
            low_value, high_value = getattr(self, name).min(), getattr(self, name).max()
            # A comparison with NaN is false, so this refuses NaN as well.
            inside = low_value >= -1e-6 and high_value <= high + 1e-6 and high_value < math.inf
            found = f"values from {low_value} to {high_value}"
            self._require(inside, name, found, f"finite values in [0, {high}]")

    def _require(self, condition, name, found, expected):
        if not condition:
            raise InputError(
                f"gallery item {self.case_id!r}, {name}",
                found=found,
                expected=expected,
                remedy="Hand over one slice on the model's scale.",
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
    """One scored case of the gallery of all cases; the fields as in `GalleryItem`.

    error: how far the case is from what its label asks for, in [0, 1], or None.
    """

    case_id: str
    kind: str
    label: int | None
    score: float
    probability: float | None
    verdict: str
    uncertainty: float | None
    error: float | None
    sprites: Sprites


def gallery_item(card, why=""):
    """The telling slice of a `Card` as a `GalleryItem`."""
    sprites, layers = card.sprites, decoded(card.sprites.key)
    return GalleryItem(
        case_id=card.case_id,
        kind=card.kind,
        label=card.label,
        score=card.score,
        probability=card.probability,
        verdict=card.verdict,
        uncertainty=card.uncertainty,
        image=layers.image,
        truth=layers.truth,
        anomaly_map=layers.anomaly,
        uncertainty_map=layers.uncertainty,
        slice_text=slice_text(sprites.key_slice, sprites.depth),
        why=why,
    )


def slice_text(number, depth):
    """ "slice 31 of 64" for slice number 30; "" for single images."""
    return f"slice {number + 1} of {depth}" if depth > 1 else ""


def outcome_of(case):
    """How the verdict of a `Card` or `GalleryItem` relates to the truth, in words."""
    truth = {0: "normal", 1: "abnormal"}.get(case.label)
    if truth is None:
        return "truth unknown"
    if not case.verdict:
        return f"truly {truth}"
    if case.verdict not in ("normal", "abnormal"):
        return f"no decision; truly {truth}"
    return "correct" if case.verdict == truth else f"wrong: truly {truth}"


class Panel(NamedTuple):
    """One picture. rgb: uint8 (h, w, 3). Where it has a colour bar: colours, the value of the last
    colour, and that value as text."""

    title: str
    rgb: np.ndarray
    colours: str = ""
    limit: float = 1.0
    high: str = ""


def uncertainty_limit(peaks):
    """The common upper end of the uncertainty colours: 1, 2 or 5 times a power of ten, at or above
    every one of `peaks`, high percentiles of the maps."""
    peak = max(peaks, default=0.0)
    if peak <= 0:
        return UNCERTAINTY_LIMIT
    power = 10.0 ** math.floor(math.log10(peak))
    # The last factor covers rounding in log10.
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= peak)


def panels_of(item, limit):
    """The panels of a case; the one with the truth only where there is a truth, else an overlay.

    limit: uncertainty shown in the last colour.
    """
    size = _tile_size(item.anomaly_map.shape)
    panels = []
    rgb = np.zeros((*size, 3), np.uint8)
    if item.image is not None:
        image = _resized(item.image.astype(np.float32), size)
        grey = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
        rgb = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=-1)
        panels.append(Panel("Image", rgb))
    if item.truth is not None:
        title = "Truth outlined" if item.truth.any() else "Truth: nothing here"
        panels.append(Panel(title, outlined(rgb, item.truth)))
    elif item.image is not None:
        panels.append(Panel("Overlay", overlaid(rgb, _resized(item.anomaly_map, size))))
    anomaly = coloured(_resized(item.anomaly_map, size), ANOMALY_COLOURS, 1.0)
    panels.append(Panel("Anomaly map", anomaly, ANOMALY_COLOURS, 1.0, "1"))
    if item.uncertainty_map is not None:
        doubt = coloured(_resized(item.uncertainty_map, size), UNCERTAINTY_COLOURS, limit)
        panels.append(Panel("Uncertainty", doubt, UNCERTAINTY_COLOURS, limit, f"≥ {limit:g}"))
    return panels


def coloured(values, colours, limit):
    """(H, W) values in [0, limit] -> (H, W, 3) uint8; values above the limit get its colour."""
    lookup = matplotlib.colormaps[colours](np.arange(256), bytes=True)[:, :3]
    return lookup[np.round(255 * np.clip(values / limit, 0, 1)).astype(np.uint8)]


def overlaid(rgb, anomaly):
    """Lays an anomaly map (H, W) in [0, 1] over a picture, the more see-through the lower it is."""
    alpha = 0.85 * np.minimum(1, 2 * np.clip(anomaly, 0, 1))[..., None]
    colours = coloured(anomaly, ANOMALY_COLOURS, 1.0)
    return np.uint8(np.round(rgb + alpha * (np.float32(colours) - rgb)))


def outlined(rgb, truth):
    """Draws the outline of `truth` (H, W) just outside of it, so that the lesion stays visible."""
    height, width = rgb.shape[:2]
    share = _resized(truth.astype(np.float32), (height, width))
    inside = (share > 0).astype(np.uint8)
    ring = cv2.dilate(inside, np.ones((5, 5), np.uint8))
    halo = cv2.dilate(ring, np.ones((3, 3), np.uint8))
    picture = rgb.copy()
    picture[(halo > 0) & (ring == 0)] = 0
    picture[(ring > 0) & (inside == 0)] = OUTLINE_RGB
    return picture


def thumbnail(card):
    """A small JPEG of the telling slice of a `Card`: image beside anomaly map, uint8 bytes."""
    tiles = [_anomaly_tile(card, THUMBNAIL_PX)]
    if card.sprites.key.image is not None:
        tiles.insert(0, _image_tile(card, THUMBNAIL_PX))
    return _jpeg(np.concatenate(tiles, axis=1))


def image_picture(card):
    """The telling slice of a `Card` with the truth outlined, a JPEG, uint8 bytes; None without an
    image."""
    return None if card.sprites.key.image is None else _jpeg(_image_tile(card, PICTURE_PX))


def anomaly_picture(card):
    """The anomaly map of the telling slice of a `Card`, a JPEG, uint8 bytes."""
    return _jpeg(_anomaly_tile(card, PICTURE_PX))


def _image_tile(card, longest):
    layers = decoded(card.sprites.key)
    grey = np.uint8(255 * np.clip(_resized(layers.image, _size(layers, longest)), 0, 1))
    rgb = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=-1)
    return rgb if layers.truth is None else outlined(rgb, layers.truth)


def _anomaly_tile(card, longest):
    layers = decoded(card.sprites.key)
    return coloured(_resized(layers.anomaly, _size(layers, longest)), ANOMALY_COLOURS, 1.0)


def _size(layers, longest):
    shape = layers.anomaly.shape
    return tuple(max(1, round(side * longest / max(shape))) for side in shape)


def _jpeg(rgb):
    picture = np.ascontiguousarray(rgb[..., ::-1])
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].ravel()


def stamped(rgb, stamp):
    """Adds a strip with the stamp below a picture, so that a copied picture still says it."""
    strip = np.zeros((16, rgb.shape[1], 3), np.uint8)
    text = stamp.upper().encode("ascii", "replace").decode()
    white = (255, 255, 255)
    cv2.putText(strip, text, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, white, 1, cv2.LINE_AA)
    return np.concatenate([rgb, strip])


def png_data_uri(rgb):
    """(H, W, 3) uint8 -> a PNG as "data:image/png;base64,..."."""
    # OpenCV's own level 1 makes grey pictures nearly twice as large.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 6]
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]), options)
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()


def colour_bar(colours):
    """A colour bar from left to right, (1, 256, 3) uint8."""
    return coloured(np.linspace(0, 1, 256)[None], colours, 1.0)


def case_picture(path, item, *, uncertainty_limit=UNCERTAINTY_LIMIT, stamp=""):
    """Writes the picture of one case as PNG: image, truth, anomaly map and uncertainty side by
    side, with the verdict and the score above.

    uncertainty_limit: the uncertainty in the last colour; the same for all pictures to compare.
    stamp: "phantom" or "planted" where the data are made up.
    """
    panels = panels_of(item, uncertainty_limit)
    height, width = panels[0].rgb.shape[:2]
    # All in inches: panels 3 wide, a title of two lines above and colour bars below.
    panel_height = min(3 * height / width, 9.0)
    total = (len(panels) * 3.2 + 0.2, panel_height + 1.6)
    figure = new_figure(total)
    for place, panel in enumerate(panels):
        left, right = (0.2 + 3.2 * place) / total[0], 3 / total[0]
        axes = figure.add_axes((left, 0.7 / total[1], right, panel_height / total[1]))
        axes.imshow(panel.rgb)
        axes.set_axis_off()
        axes.set_title(panel.title, fontsize=10)
        if panel.colours:
            bar = figure.add_axes((left, 0.5 / total[1], right, 0.12 / total[1]))
            scale = matplotlib.cm.ScalarMappable(Normalize(0, panel.limit), panel.colours)
            figure.colorbar(scale, cax=bar, orientation="horizontal").outline.set_visible(False)
            # Inner numbers only would hide the ends; more than three would run together.
            middle = panel.limit / 2
            labels = ["0", f"{middle:g}", panel.high]
            bar.set_xticks((0, middle, panel.limit), labels, fontsize=8)
            for label, side in zip(bar.get_xticklabels(), ("left", "center", "right"), strict=True):
                label.set_horizontalalignment(side)
    title, detail = _headline(item)
    figure.text(
        0.2 / total[0],
        1 - 0.32 / total[1],
        figure_text(title),
        fontsize=12,
        color=INK,
        parse_math=False,
    )
    figure.text(
        0.2 / total[0],
        1 - 0.55 / total[1],
        figure_text(detail),
        fontsize=9,
        color=INK,
        parse_math=False,
    )
    stamp_figure(figure, stamp)
    write_bytes(Path(path), to_png(figure))


def _headline(item):
    name = item.case_id if len(item.case_id) <= 48 else f"{item.case_id[:45]}..."
    detail = [f"score {item.score:.3f}"]
    if item.probability is not None:
        detail.append(f"probability {item.probability:.2f}")
    if item.uncertainty is not None:
        detail.append(f"uncertainty {item.uncertainty:.3f}")
    if item.slice_text:
        detail.append(item.slice_text)
    return f"{item.verdict.upper()}: {name}" if item.verdict else name, ", ".join(detail)


def _tile_size(shape):
    """(height, width) in pixels: near TILE_PX, by whole factors upwards so pixels stay square."""
    longest = max(shape)
    scale = TILE_PX // longest if longest <= TILE_PX else TILE_PX / longest
    return tuple(max(1, round(side * scale)) for side in shape)


def _resized(array, size):
    height, width = size
    grows = height >= array.shape[0]
    # Nearest shows the pixels the model saw; area keeps small structures when there are too many.
    kind = cv2.INTER_NEAREST if grows else cv2.INTER_AREA
    return cv2.resize(np.asarray(array, np.float32), (width, height), interpolation=kind)
