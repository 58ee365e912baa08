"""Anomalies planted in healthy scans, with exact masks: a test set where none was drawn by hand.

In the spirit of the MOOD challenge's hidden test set. No kind is a training task of
`caal_jax.synthesis`: nothing is cut out elsewhere, in this subject or another, and blended in.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from caal_jax.data.case import Entry
from caal_jax.errors import InputError

SIZE_RANGE = (0.04, 0.2)  # radius as a share of the smallest in-plane side
CONTRAST_RANGE = (0.1, 1.0)  # as a share of the robust range of the foreground
# Least change, in units of the robust range and of the noise: of a pixel's neighbourhood to belong
# to the mask, and of the mask on average. Mere noise drawn anew changes by 1.13 of its deviation.
NOTICEABLE = (0.02, 1.5)
MEANINGFUL = (0.03, 2.0)
MOST_NOISE = 0.03  # in units of the robust range
LEAST_SHARE = 0.3  # of the blob that must have changed noticeably
NUM_ATTEMPTS = 16


class Planted(NamedTuple):
    """An image with one anomaly.

    image: as given, in shape and data type. mask: bool, without the channels, never empty.
    kind: one of `KINDS`. radius_fraction: radius / smallest in-plane side. contrast: strength in
    (0, 1], see `plant`.
    """

    image: np.ndarray
    mask: np.ndarray
    kind: str
    radius_fraction: float
    contrast: float


def plant(image, *, kind, seed, size=None, contrast=None):
    """Plants one anomaly of the given kind, in a random smooth blob inside the foreground.

    image: (H, W, C), or (D, H, W, C) with the slice axis first; float or integer of any range.
    kind: one of `KINDS`:
        uniform_blob, noise_blob: the tissue gives way to one grey level, or to white noise;
        intensity_shift: the tissue stays, brighter or darker by a sum or a factor;
        sink, source: the tissue is drawn towards the centre, or pushed away from it;
        missing_part: the tissue gives way to the background, or to what surrounds it;
        mirrored_part: the blob's content is flipped in place, along rows or columns;
        foreign_texture: the fine structure gives way to a wave, a checkerboard or coarse noise.
    seed: anything `numpy.random.default_rng` takes.
    size: blob radius / smallest in-plane side, drawn from `SIZE_RANGE` if None. Volumes get 3-D
        blobs, flatter along the slice axis where there are fewer slices than rows or columns.
    contrast: strength in (0, 1], drawn from `CONTRAST_RANGE` if None; where grey levels are set it
        is the change in units of the foreground's robust range (1st to 99th percentile), elsewhere
        it grades the deformation or the replacement. A mirrored part has none (recorded as 1).

    The mask is the set of pixels that differ from the input: outside it the image is bit-identical,
    inside it every pixel differs in some channel. It is the part of the blob, within the
    foreground, where the change averaged over the neighbours is noticeable: 2 % of the robust range
    and 1.5 times the noise. Holes in it are filled, the rest of the blob is put back. A pixel in
    there whose new value happens to equal the old one is moved by the smallest step of its data
    type. No value leaves the range of the input.

    Truth must be worth finding: an anomaly whose mean change over the mask is below 3 % of the
    robust range or twice the noise, or that shows in less than 30 % of its blob, is redrawn
    elsewhere, stronger, and in the end larger; the result tells the size and contrast that came
    out. Noise is estimated from the differences of neighbouring pixels.
    Raises: InputError for images of another rank or data type, not finite or constant, for an
    unknown kind, and where no place shows the anomaly (a mirrored part of a symmetric image).
    """
    _check(image, kind, size, contrast)
    rng = np.random.default_rng(seed)
    if size is None:
        size = rng.uniform(*SIZE_RANGE)
    if contrast is None:
        contrast = rng.uniform(*CONTRAST_RANGE)
    if kind == "mirrored_part":
        contrast = 1.0
    scene = _scene(image)
    for attempt in range(NUM_ATTEMPTS):
        radius = _radius_px(image.shape, size)
        places, lively = _places(scene, radius)
        # Later tries go where the image has structure: a deformed flat area shows nothing.
        centre = rng.choice(places if attempt < NUM_ATTEMPTS // 4 else lively)
        planted = _plant_once(rng, scene, _spot(rng, scene, centre, radius), kind, contrast)
        if planted is not None:
            return Planted(*planted, kind, float(size), float(contrast))
        if kind != "mirrored_part":
            contrast = min(1.0, contrast * 1.25)
        if attempt >= NUM_ATTEMPTS // 2:
            size = min(0.5, size * 1.15)
    raise InputError(
        "image to plant in",
        found=f"no place where {kind} would show",
        expected="foreground with structure",
        remedy="Choose another kind or a larger size.",
    )


def planted_entries(entries, *, seed, abnormal_fraction=0.5):
    """Turns held-out healthy entries into a test split; order and case ids stay.

    A random `abnormal_fraction` of the cases (rounded half up) gets one anomaly each when it is
    loaded. The kinds cycle evenly; within a kind sizes and contrasts spread evenly over their
    ranges. Every case gets a mask, all False for the normal ones, and label and kind to match.
    Raises: InputError on loading a case that is not healthy, or as `plant` does.
    """
    rng = np.random.default_rng(seed)
    num_abnormal = int(len(entries) * abnormal_fraction + 0.5)
    chosen = rng.permutation(len(entries))[:num_abnormal]
    starts = rng.uniform(size=(len(KINDS), 2))
    first_kind = rng.integers(len(KINDS))
    plans = {}
    for i, index in enumerate(chosen):
        turn, k = divmod(i, len(KINDS))
        # Steps by irrational shares fill the unit square evenly however few cases there are.
        share = (starts[k] + turn * np.array([0.7548777, 0.5698403])) % 1
        plans[index] = {
            "kind": KINDS[(first_kind + k) % len(KINDS)],
            "seed": int(rng.integers(2**63)),
            "size": float(np.interp(share[0], (0, 1), SIZE_RANGE)),
            "contrast": float(np.interp(share[1], (0, 1), CONTRAST_RANGE)),
        }
    return [
        Entry(entry.case_id, functools.partial(_load, entry, plans.get(i)), entry.paths)
        for i, entry in enumerate(entries)
    ]


def _load(entry, plan):
    case = entry.load()
    if case.label == 1 or (case.mask is not None and case.mask.any()):
        raise InputError(
            f"case {case.case_id}",
            found=f"an abnormal case ({case.kind})",
            expected="a healthy one to plant an anomaly in",
            remedy="Leave it out of the healthy test images.",
        )
    if plan is None:
        mask = np.zeros(case.image.shape[:-1], bool)
        return dataclasses.replace(case, mask=mask, label=0, kind="normal")
    planted = plant(case.image, **plan)
    return dataclasses.replace(
        case, image=planted.image, mask=planted.mask, label=1, kind=planted.kind
    )


def _check(image, kind, size, contrast):
    def reject(where, found, expected, remedy):
        raise InputError(where, found=found, expected=expected, remedy=remedy)

    if kind not in KINDS:
        reject("anomaly kind", repr(kind), f"one of {', '.join(KINDS)}", "Choose one of them.")
    if size is not None and not 0 < size <= 0.5:
        reject("anomaly size", size, "a share in (0, 0.5]", "Change it.")
    if contrast is not None and not 0 < contrast <= 1:
        reject("anomaly contrast", contrast, "a share in (0, 1]", "Change it.")
    where = "image to plant in"
    if image.ndim not in (3, 4):
        reject(where, f"shape {image.shape}", "(H, W, C) or (D, H, W, C)", "Add the channel axis.")
    if not (np.issubdtype(image.dtype, np.integer) or np.issubdtype(image.dtype, np.floating)):
        reject(where, f"{image.dtype} values", "float or integer values", "Convert it.")
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        reject(where, "values that are not finite", "finite values", "Repair or drop the image.")
    if low == high:
        reject(where, f"{low} everywhere", "an image with content", "Drop the image.")


class _Scene(NamedTuple):
    """What every anomaly in an image needs to know of it; foreground has no channel axis."""

    image: np.ndarray
    foreground: np.ndarray
    limits: tuple[float, float]
    background: float
    scale: float  # the robust range
    noise: float  # standard deviation, in units of scale


def _scene(image):
    grey = image.mean(axis=-1, dtype=np.float32)
    limits = float(image.min()), float(image.max())
    low, high = np.percentile(grey, (1, 99))
    if low == high:
        low, high = grey.min(), grey.max()
    # Air is what is dark and reaches a side of its slice; gas inside the body does not.
    components, _ = ndimage.label(grey <= low + 0.05 * (high - low))
    sides = [components[..., [0, -1], :].ravel(), components[..., [0, -1]].ravel()]
    touches = np.zeros(components.max() + 1, bool)
    touches[np.concatenate(sides)] = True
    touches[0] = False
    foreground = ~touches[components]
    inner = np.percentile(image[foreground], (1, 99))
    scale = float(inner[1] - inner[0]) or limits[1] - limits[0]
    steps = np.diff(grey, axis=-1)[foreground[..., 1:] & foreground[..., :-1]]
    noise = 1.4826 * float(np.median(np.abs(steps))) / math.sqrt(2) / scale if steps.size else 0.0
    # In coarse images neighbours differ by anatomy, not noise: hence the limit.
    noise = min(noise, MOST_NOISE)
    return _Scene(image, foreground, limits, float(low), scale, noise)


def _radius_px(shape, size):
    """(axes,) radii of the blob along the spatial axes, before its own shape."""
    *slices, height, width, _ = shape
    in_plane = max(1.5, size * min(height, width))
    through = [max(1.0, in_plane * min(1.0, n / min(height, width))) for n in slices]
    return np.array([*through, in_plane, in_plane])


def _places(scene, radius):
    """Centres (N, axes) whose blob would lie mostly in the foreground; the liveliest fifth."""
    steps = [max(1, n // 64) for n in scene.foreground.shape]
    grid = tuple(slice(step // 2, None, step) for step in steps)
    inside = scene.foreground[grid].astype(np.float32)
    widths = np.maximum(1, np.round(2 * radius / steps)).astype(int).tolist()
    share = ndimage.uniform_filter(inside, widths, mode="constant")
    grey = scene.image[grid].mean(axis=-1, dtype=np.float32) / np.float32(scene.scale)
    mean = ndimage.uniform_filter(grey, widths)
    variance = ndimage.uniform_filter((grey - mean) ** 2, widths)
    good = (share >= min(0.85, 0.9 * share[inside > 0].max())) & (inside > 0)
    index = np.argwhere(good)
    lively = index[variance[good] >= np.quantile(variance[good], 0.8)]
    return index * steps + np.array(steps) // 2, lively * steps + np.array(steps) // 2


class _Spot(NamedTuple):
    """A blob and the part of the image around it.

    box: slices of the image. values: (..., C) float64 and foreground (...), both in the box.
    offset: (axes, ...) position - centre in px. radial: 0 at the centre, 1 on the outline,
    continuous. radius_px: in-plane.
    """

    box: tuple[slice, ...]
    centre: np.ndarray
    values: np.ndarray
    foreground: np.ndarray
    offset: np.ndarray
    radial: np.ndarray
    radius_px: float


def _spot(rng, scene, centre, radius):
    dims = len(centre)
    reach = np.ceil(2.1 * radius).astype(int)  # no blob is wider: 1.32 by its axes, 1.56 by lumps
    start = np.maximum(centre - reach, 0)
    stop = np.minimum(centre + reach + 1, scene.foreground.shape)
    lines = [
        np.arange(a, b, dtype=np.float32)
        for a, b in zip(start - centre, stop - centre, strict=True)
    ]
    offset = np.stack(np.meshgrid(*lines, indexing="ij"))
    turn = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    axes = np.exp(rng.uniform(-0.28, 0.28, dims))
    to_blob = turn / axes[:, np.newaxis] / radius
    radial = np.linalg.norm(np.tensordot(to_blob.astype(np.float32), offset, 1), axis=0)
    waves = (rng.normal(0, 2, (5, dims)) / radius).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, 5).astype(np.float32)
    lumps = sum(np.cos(np.tensordot(q, offset, 1) + p) for q, p in zip(waves, phases, strict=True))
    radial /= 1 + np.float32(rng.uniform(0.05, 0.25) / np.sqrt(5)) * lumps

    # Keep the blob and some of its surroundings.
    extent = [np.flatnonzero(inside) for inside in _projections(radial < 1)]
    margin = np.ceil(0.4 * radius).astype(int) + 1
    first = np.maximum([e[0] for e in extent] - margin, 0)
    last = np.minimum([e[-1] for e in extent] + margin + 1, radial.shape)
    crop = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    box = tuple(slice(a, b) for a, b in zip(start + first, start + last, strict=True))
    return _Spot(
        box=box,
        centre=centre,
        values=scene.image[box].astype(np.float64),
        foreground=scene.foreground[box],
        offset=offset[:, *crop],
        radial=radial[crop],
        radius_px=float(radius[-1]),
    )


def _projections(inside):
    axes = range(inside.ndim)
    return [inside.any(axis=tuple(a for a in axes if a != axis)) for axis in axes]


def _plant_once(rng, scene, spot, kind, contrast):
    """(image, mask), or None where the anomaly does not show well enough."""
    change, soft = _CHANGES[kind]
    changed = change(rng, scene, spot, contrast)
    edge = rng.uniform(0.05, 0.4) if soft else 1e-6
    blob = (spot.radial < 1) & spot.foreground
    cover = np.clip((1 - spot.radial) / edge, 0, 1) * blob
    mixed = np.clip(spot.values + cover[..., np.newaxis] * (changed - spot.values), *scene.limits)
    dtype = scene.image.dtype
    if np.issubdtype(dtype, np.integer):
        mixed = np.rint(mixed)
    before, mixed = scene.image[spot.box], mixed.astype(dtype)

    difference = np.abs(mixed.astype(np.float64) - spot.values).max(axis=-1) / scene.scale
    around = ndimage.gaussian_filter(difference, max(0.7, 0.2 * spot.radius_px))
    mask = blob & (around >= _threshold(NOTICEABLE, scene))
    if mask.sum() < max(1, LEAST_SHARE * blob.sum()):
        return None
    if difference[mask].mean() < _threshold(MEANINGFUL, scene):
        return None
    mask = blob & ndimage.binary_fill_holes(mask)
    after = np.where(mask[..., np.newaxis], mixed, before)
    unmoved = mask & (after == before).all(axis=-1)
    after[unmoved] = _smallest_step(before[unmoved], scene.limits)
    image = scene.image.copy()
    image[spot.box] = after
    full_mask = np.zeros(scene.foreground.shape, bool)
    full_mask[spot.box] = mask
    return image, full_mask


def _threshold(least, scene):
    return max(least[0], least[1] * scene.noise)


def _smallest_step(values, limits):
    """The next value of the same data type, towards the middle of the limits."""
    up = values.astype(np.float64) < (limits[0] + limits[1]) / 2
    if np.issubdtype(values.dtype, np.integer):
        return np.where(up, values + 1, values - 1).astype(values.dtype)
    return np.nextafter(values, np.where(up, np.inf, -np.inf).astype(values.dtype))


# The changes: (rng, scene, spot, contrast) -> new values for the whole box, (..., C) float64. They
# may leave the range of the image; `_plant_once` clips.


def _sign(rng, scene, level, step):
    """+1 or -1 by chance, unless only one of them stays in the range of the image."""
    up, down = level + step <= scene.limits[1], level - step >= scene.limits[0]
    if up == down:
        return rng.choice((-1, 1)) if up else (1 if level < sum(scene.limits) / 2 else -1)
    return 1 if up else -1


def _level(spot):
    """(C,) the usual value in the blob."""
    return np.median(spot.values[(spot.radial < 1) & spot.foreground], axis=0)


def _uniform_blob(rng, scene, spot, contrast):
    level, step = _level(spot), contrast * scene.scale
    sign = _sign(rng, scene, level.mean(), step)
    return np.broadcast_to(level + sign * step, spot.values.shape)


def _noise_blob(rng, scene, spot, contrast):
    return _level(spot) + 0.5 * contrast * scene.scale * rng.standard_normal(spot.values.shape)


def _intensity_shift(rng, scene, spot, contrast):
    level, step = _level(spot).mean(), contrast * scene.scale
    step *= _sign(rng, scene, level, step)
    above = level - scene.background
    if rng.random() < 0.5 and above > 0.2 * scene.scale:
        gain = max(0.0, 1 + step / above)
        return scene.background + gain * (spot.values - scene.background)
    return spot.values + step


def _deform(spot, power):
    """Content is taken from the same direction, at distance radial ** power instead of radial."""
    pull = np.maximum(spot.radial, 1e-3) ** (power - 1)
    pull[spot.radial >= 1] = 1
    centre = spot.centre - [b.start for b in spot.box]
    places = centre.reshape(-1, *[1] * len(centre)) + spot.offset * pull
    channels = [
        ndimage.map_coordinates(spot.values[..., c], places, order=3, mode="nearest")
        for c in range(spot.values.shape[-1])
    ]
    return np.stack(channels, axis=-1)


def _sink(rng, scene, spot, contrast):
    return _deform(spot, 1 - 0.8 * contrast)


def _source(rng, scene, spot, contrast):
    return _deform(spot, 1 + 2 * contrast)


def _missing_part(rng, scene, spot, contrast):
    if rng.random() < 0.5:
        fill = np.full(spot.values.shape, scene.background)
    else:
        around = ((spot.radial >= 1) & spot.foreground).astype(np.float64)[..., np.newaxis]
        sigma = [0.4 * spot.radius_px] * around[..., 0].ndim + [0]
        weight = ndimage.gaussian_filter(around, sigma)
        fill = ndimage.gaussian_filter(around * spot.values, sigma) / np.maximum(weight, 1e-9)
        fill = np.where(weight > 1e-6, fill, _level(spot))
        fill += scene.noise * scene.scale * rng.standard_normal(fill.shape)
    return spot.values + (0.3 + 0.7 * contrast) * (fill - spot.values)


def _mirrored_part(rng, scene, spot, contrast):
    axis = len(spot.centre) - rng.choice((1, 2))
    where = spot.box[axis]
    mirrored = 2 * spot.centre[axis] - np.arange(where.start, where.stop)
    index = list(spot.box)
    index[axis] = np.clip(mirrored, 0, scene.image.shape[axis] - 1)
    return scene.image[tuple(index)].astype(np.float64)


def _foreign_texture(rng, scene, spot, contrast):
    dims = len(spot.centre)
    style = rng.choice(("wave", "checkerboard", "coarse noise"))
    wavelength_px = rng.uniform(3, max(4, min(10, spot.radius_px)))
    if style == "coarse noise":
        pattern = ndimage.gaussian_filter(
            rng.standard_normal(spot.radial.shape), wavelength_px / 5, mode="wrap"
        )
        pattern /= pattern.std()
    else:
        turn = np.linalg.qr(rng.standard_normal((dims, dims)))[0] * (2 * np.pi / wavelength_px)
        waves = np.sin(np.tensordot(turn, spot.offset, 1) + rng.uniform(0, 2 * np.pi))
        pattern = 1.4 * waves[0] if style == "wave" else np.sign(np.prod(waves, axis=0))
    smooth = ndimage.gaussian_filter(spot.values, [1.5] * dims + [0])
    return smooth + 0.4 * contrast * scene.scale * pattern[..., np.newaxis]


# kind -> (change, whether its rim is soft: deformations fade out by themselves)
_CHANGES = {
    "uniform_blob": (_uniform_blob, True),
    "noise_blob": (_noise_blob, True),
    "intensity_shift": (_intensity_shift, True),
    "sink": (_sink, False),
    "source": (_source, False),
    "missing_part": (_missing_part, True),
    "mirrored_part": (_mirrored_part, True),
    "foreign_texture": (_foreign_texture, True),
}
KINDS = tuple(_CHANGES)
