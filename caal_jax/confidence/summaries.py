"""Maps reduced to numbers: for the whole image, and for each region that was found."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from caal_jax.confidence.decision import volume_score

TOP_SHARE = 0.25  # of the foreground, for the uncertainty of an image


class Region(NamedTuple):
    """One connected part of a map, with what is believed of it.

    size_px: pixels or voxels; size_mm: the same in mm^2 or mm^3. centre_px: its centre of mass and
    box_px: its first and one past its last pixel, along each axis of the map. peak: its highest
    probability. means: over it, of the probability and of every other map that was given.
    """

    size_px: int
    size_mm: float
    centre_px: tuple[float, ...]
    box_px: tuple[tuple[int, int], ...]
    peak: float
    means: dict[str, float]


def image_uncertainty(uncertainty, foreground, *, found=None, q=TOP_SHARE):
    """{"mean", "top", "max", "found"} of an uncertainty map over the foreground; floats.

    uncertainty: (H, W) or (D, H, W); foreground: that shape, bool. top: the mean of the largest
    share `q`. found: the mean where a map of that shape, bool, holds too, such as probability >=
    1/2; left out without one. All 0 where there is no such pixel. The spread of the image score
    over samples (`Prediction.score_std`) is usually the better number: it knows how pixels err
    together.
    """
    top = volume_score(uncertainty, foreground, q=q)
    inside = uncertainty[foreground]
    summary = {"mean": _mean(inside), "top": top, "max": float(inside.max(initial=0.0))}
    if found is not None:
        summary["found"] = _mean(uncertainty[foreground & found])
    return summary


def _mean(values):
    return float(np.mean(values, dtype=np.float64)) if values.size else 0.0


def find_regions(probability, maps, *, threshold=0.5, spacing_mm=None, most=100):
    """The `most` largest connected parts of `probability >= threshold`: `Region`s, largest first.

    probability: (H, W), 8-connected, or (D, H, W), 26-connected. maps: {name: map of that shape}
    whose means over each region are wanted, such as uncertainties. spacing_mm: of each axis; ones
    by default.
    """
    found = probability >= threshold
    if not found.any():
        return []
    # Labels cost four bytes a voxel: only the box around all regions gets them.
    around = ndimage.find_objects(found.view(np.uint8))[0]
    first = [side.start for side in around]
    labels, _ = ndimage.label(found[around], structure=np.ones((3,) * found.ndim))
    pixel_mm = float(np.prod(spacing_mm)) if spacing_mm is not None else 1.0
    sizes, boxes = np.bincount(labels.ravel())[1:], ndimage.find_objects(labels)
    regions = []
    for number in np.argsort(-sizes, kind="stable")[:most]:
        box = boxes[number]
        own = labels[box] == number + 1
        whole = tuple(
            slice(side.start + at, side.stop + at) for side, at in zip(box, first, strict=True)
        )
        start = [side.start for side in whole]
        means = {
            name: float(values[whole][own].mean(dtype=np.float64))
            for name, values in {"probability": probability, **maps}.items()
        }
        regions.append(
            Region(
                size_px=int(sizes[number]),
                size_mm=float(sizes[number] * pixel_mm),
                centre_px=tuple(float(a) for a in np.argwhere(own).mean(0) + start),
                box_px=tuple((side.start, side.stop) for side in whole),
                peak=float(probability[whole][own].max()),
                means=means,
            )
        )
    return regions
