"""Small 8-bit pictures of a case, made as soon as it is scored, so that no map stays in memory.

The slices of a volume are laid side by side in one JPEG per layer; the page paints them with fixed
colours in the browser.
"""

import base64
import math
from typing import NamedTuple

import cv2
import numpy as np

# The largest mutual information and entropy of a yes-or-no question, in nats.
UNCERTAINTY_MAX = math.log(2)
KEY_TRIES = (288, 92), (288, 75), (224, 75), (160, 75)  # longer side in pixels, JPEG quality
STACK_SIDES_PX = (192, 160, 128, 96, 72, 56)
STACK_QUALITY = 80
MAX_SLICES = 64


class Layers(NamedTuple):
    """Encoded pictures of one size, uint8 arrays: JPEG, and PNG for the truth. None: not there.

    anomaly is stored as round(255 a), uncertainty as round(255 sqrt(u / ln 2)), as it rarely
    leaves the lowest tenth of its range.
    """

    image: np.ndarray | None
    truth: np.ndarray | None
    anomaly: np.ndarray
    uncertainty: np.ndarray | None


class Sprites(NamedTuple):
    """The pictures of one case.

    key: `Layers` of the telling slice, its longer side at most 288 pixels. stack: of the slices of
    a volume, `columns` tiles of (height, width) in a row; None for a single image. slices: the
    number of each tile's slice, from 0. key_tile: the tile nearest to the telling slice.
    depth: number of slices of the case, 1 for an image. key_slice: the telling slice, from 0.
    uncertainty_peak: 99.9th percentile of the telling slice's uncertainty, or 0.
    """

    key: Layers
    stack: Layers | None
    height: int
    width: int
    columns: int
    slices: tuple[int, ...]
    key_tile: int
    depth: int
    key_slice: int
    uncertainty_peak: float

    @classmethod
    def of(cls, key, stack, *rest):
        """From plain tuples, as they come back from a file."""
        return cls(Layers(*key), None if stack is None else Layers(*stack), *rest)


class DecodedLayers(NamedTuple):
    """Layers as arrays: image (H, W) or (H, W, 3) and anomaly in [0, 1], truth bool, uncertainty
    in [0, ln 2]."""

    image: np.ndarray | None
    truth: np.ndarray | None
    anomaly: np.ndarray
    uncertainty: np.ndarray | None


def case_budget_bytes(num_cases):
    """How large the pictures of one case may be, so that a page of `num_cases` stays small."""
    return min(400_000, 9_000_000 // max(1, num_cases))


def make_sprites(image, truth, anomaly, uncertainty, *, budget_bytes):
    """`Sprites` of one case.

    anomaly: (H, W), or (D, H, W) for a volume, in [0, 1]. image: that shape and a channel axis of
    1 or 3, in [0, 1]; truth: that shape, bool; uncertainty: that shape, in [0, ln 2]. Each of the
    three may be None. budget_bytes: of a single image, which gets coarser until it fits, and of the
    slices of a volume, which get smaller and then fewer; with 0 the slices are left out. The
    telling slice has most truth, else the highest sum of anomaly.
    """
    volume = anomaly.ndim == 3
    layers = [image, truth, anomaly, uncertainty]
    if not volume:
        layers = [None if layer is None else layer[None] for layer in layers]
    depth = len(layers[2])
    weight = np.zeros(depth) if truth is None else layers[1].sum(axis=(1, 2))
    if not weight.any():
        weight = layers[2].sum(axis=(1, 2), dtype=np.float64)
    key = int(np.argmax(weight))
    own = [None if layer is None else layer[key : key + 1] for layer in layers]
    for side, quality in KEY_TRIES:
        size = _fitted(layers[2].shape[1:], side)
        found = _encoded(own, size, 1, quality)
        if not budget_bytes or _num_bytes(found) <= budget_bytes:
            break
    peak = 0.0 if uncertainty is None else float(np.quantile(own[3], 0.999))
    sprites = Sprites(found, None, *size, 1, (0,), 0, depth, key, peak)
    if depth == 1 or not budget_bytes:
        return sprites
    sizes = list(dict.fromkeys(_fitted(layers[2].shape[1:], side) for side in STACK_SIDES_PX))
    for count in (MAX_SLICES, 48, 32, 24, 16):
        # All slices if there are few; else evenly spaced ones, the telling one among them.
        chosen = np.unique(np.append(np.linspace(0, depth - 1, min(depth, count)).round(), key))
        chosen = chosen.astype(int)
        columns = math.ceil(math.sqrt(len(chosen)))
        picked = [None if layer is None else layer[chosen] for layer in layers]
        for size in sizes:
            stack = _encoded(picked, size, columns, STACK_QUALITY)
            if _num_bytes(stack) <= budget_bytes:
                break
        else:
            continue
        break
    return sprites._replace(
        stack=stack,
        height=size[0],
        width=size[1],
        columns=columns,
        slices=tuple(map(int, chosen)),
        key_tile=int(np.flatnonzero(chosen == key)[0]),
    )


def decoded(layers):
    """`Layers` -> `DecodedLayers`."""

    def grey(code):
        return None if code is None else np.float32(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)) / 255

    image, uncertainty = layers.image, grey(layers.uncertainty)
    if image is not None:
        image = np.float32(cv2.imdecode(image, cv2.IMREAD_UNCHANGED)) / 255
        image = image[..., ::-1] if image.ndim == 3 else image
    return DecodedLayers(
        image=image,
        truth=None if layers.truth is None else grey(layers.truth) > 0,
        anomaly=grey(layers.anomaly),
        uncertainty=None if uncertainty is None else uncertainty**2 * UNCERTAINTY_MAX,
    )


def data_uri(code):
    """Encoded bytes of a JPEG or PNG -> "data:image/...;base64,..."."""
    data = np.asarray(code).tobytes()
    kind = "png" if data[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def _fitted(shape, longest):
    """(height, width) with the proportions of `shape`, its longer side at most `longest`."""
    scale = min(1.0, longest / max(shape))
    return tuple(max(1, round(side * scale)) for side in shape)


def _num_bytes(layers):
    return sum(layer.size for layer in layers if layer is not None)


def _encoded(layers, size, columns, quality):
    image, truth, anomaly, uncertainty = layers

    def grey(stack, scale):
        if stack is None:
            return None
        tiles = [scale(_resized(one, size)) for one in stack]
        return _jpeg(_mosaic(tiles, columns), quality)

    coded = None
    if image is not None:
        coded = grey(image[..., 0] if image.shape[-1] == 1 else image[..., ::-1], _byte)
    mask = None
    if truth is not None:
        # Any share of a pixel counts, so that a small lesion survives shrinking.
        tiles = [np.uint8(255 * (_resized(one, size) > 0)) for one in truth]
        one_bit = [cv2.IMWRITE_PNG_BILEVEL, 1]
        mask = cv2.imencode(".png", _mosaic(tiles, columns), one_bit)[1].ravel()
    return Layers(
        image=coded,
        truth=mask,
        anomaly=grey(anomaly, _byte),
        uncertainty=grey(uncertainty, lambda u: _byte(np.sqrt(np.maximum(u, 0) / UNCERTAINTY_MAX))),
    )


def _byte(values):
    return np.uint8(np.round(255 * np.clip(values, 0, 1)))


def _resized(values, size):
    height, width = size
    shrinks = height < values.shape[0] or width < values.shape[1]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    return cv2.resize(np.float32(values), (width, height), interpolation=kind)


def _mosaic(tiles, columns):
    rows = math.ceil(len(tiles) / columns)
    tiles = [*tiles, *[np.zeros_like(tiles[0])] * (rows * columns - len(tiles))]
    lines = [np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)]
    return np.ascontiguousarray(np.concatenate(lines, axis=0))


def _jpeg(picture, quality):
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].ravel()
