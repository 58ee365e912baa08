"""Lesions as objects: is each one found, at how many false alarms, and do boxes overlap?"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from caal_jax.errors import InputError
from caal_jax.metrics.inputs import check_maps, check_unit_interval

# Mean false alarms per image at which a FROC curve is read off (CAMELYON16).
FROC_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class Detections(NamedTuple):
    """Candidates of one map against its lesions.

    lesion_scores: (L,) the best candidate in each lesion, -inf where there is none;
    lesion_sizes: (L,) pixels or voxels; alarm_scores: (A,) the candidates outside all lesions.
    """

    lesion_scores: np.ndarray
    lesion_sizes: np.ndarray
    alarm_scores: np.ndarray


class ObjectCounts(NamedTuple):
    """Lesions, those touched by what was found, and found regions that touch none; add to pool."""

    lesions: int
    found: int
    false_alarms: int


def components(mask):
    """(labels, number) of connected components, 8-connected (H, W) or 26-connected (D, H, W)."""
    return ndimage.label(mask, structure=np.ones((3,) * np.ndim(mask)))


def object_counts(scores, mask, threshold):
    """`ObjectCounts` of `scores >= threshold`, connected as in `components`.

    scores, mask: one map (H, W) or (D, H, W). Sensitivity is found / lesions of the sums over
    images, and false alarms per image are false_alarms / images.
    """
    ((scores, mask),) = check_maps([scores], [mask])
    found, lesions = scores >= threshold, components(mask)
    regions, number = components(found)
    touched = np.unique(regions[found & mask]).size
    return ObjectCounts(lesions[1], np.unique(lesions[0][found & mask]).size, number - touched)


def candidates(scores, radius_px=5):
    """Peaks of a map (H, W) or (D, H, W): index arrays, one for each axis, and their scores (M,).

    A peak is the largest score within `radius_px` along every axis. A connected plateau is one
    peak, at its pixel nearest to its centre; what equals the smallest score of the map is none.
    """
    largest = ndimage.maximum_filter(scores, 2 * radius_px + 1, mode="nearest")
    plateaus, number = components((scores == largest) & (scores > scores.min()))
    index = np.nonzero(plateaus)
    member = plateaus[index] - 1
    size = np.bincount(member, minlength=number)
    away = sum((axis - (np.bincount(member, axis) / size)[member]) ** 2 for axis in index)
    order = np.lexsort((away, member))
    first = order[np.searchsorted(member[order], np.arange(number))]
    index = tuple(axis[first] for axis in index)
    return index, scores[index]


def detections(scores, mask, *, radius_px=5):
    """`Detections` of one map and its mask, both (H, W) or (D, H, W); see `candidates`.

    Further candidates in a lesion that has one are neither hits nor alarms.
    """
    ((scores, mask),) = check_maps([scores], [mask])
    index, values = candidates(scores, radius_px)
    lesions, number = components(mask)
    best = np.full(number + 1, -np.inf)
    np.maximum.at(best, lesions[index], values)
    sizes = np.bincount(lesions[mask], minlength=number + 1)
    return Detections(best[1:], sizes[1:], values[lesions[index] == 0])


def froc_counts(found, num_bins=1024):
    """Counts (num_bins + 1, 2) of the `Detections` of one image with scores in [0, 1].

    Rows from 1 on hold, by rising bin of the score, false alarms and lesions; row 0 holds the
    number of images, 1, and the lesions without a candidate. The streaming twin of `froc`: add
    the counts of images to pool them; a stack of them is what `bootstrap_interval` wants. The
    FROC is then exactly that of scores rounded down to a bin.
    """
    counts = np.zeros((num_bins + 1, 2))
    hit = found.lesion_scores > -np.inf
    for column, values in enumerate((found.alarm_scores, found.lesion_scores[hit])):
        bins = (check_unit_interval("scores", values) * num_bins).astype(np.intp)
        counts[1:, column] = np.bincount(np.minimum(bins, num_bins - 1), minlength=num_bins)
    counts[0] = 1, np.count_nonzero(~hit)
    return counts


def froc_curve_from_counts(counts):
    """False alarms per image and sensitivity, (..., K) each, by falling score; see `froc_counts`.

    Sensitivity is NaN without lesions.
    """
    counts = np.asarray(counts, np.float64)
    alarms, lesions = np.moveaxis(np.cumsum(counts[..., :0:-1, :], axis=-2), -1, 0)
    images, total = counts[..., 0, :1], counts[..., 1].sum(-1)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return alarms / images, lesions / total


def froc_from_counts(counts, rates=FROC_RATES):
    """`froc` of counts (..., K, 2); see `froc_counts`."""
    alarms, sensitivity = froc_curve_from_counts(counts)
    # The tolerance forgives the rounding of the rate itself.
    reached = [
        np.max(np.where(alarms <= rate + 1e-12, sensitivity, 0.0), axis=-1, initial=0.0)
        for rate in rates
    ]
    return np.where(np.asarray(counts)[..., 1].sum(-1) > 0, np.mean(reached, axis=0), np.nan)[()]


def froc(maps, masks, *, rates=FROC_RATES, radius_px=5):
    """Mean sensitivity for lesions at several mean numbers of false alarms per image.

    maps, masks: as many maps as masks, (H, W) or (D, H, W) each; an image whose mask is all zeros
    counts for the false alarms. Detections are the peaks of a map (see `candidates`): one inside
    a lesion finds it, one outside all lesions is a false alarm. For each rate the best
    sensitivity of the thresholds that keep it counts, without interpolation. NaN without lesions.
    Paper: Bejnordi et al. 2017, CAMELYON16 (doi:10.1001/jama.2017.14585), whose script
    interpolates linearly between thresholds instead.
    """
    found = [
        detections(scores, mask, radius_px=radius_px) for scores, mask in check_maps(maps, masks)
    ]
    lesions, _, alarms = (np.concatenate([np.empty(0), *values]) for values in _columns(found))
    values = np.unique(np.concatenate([[-np.inf], lesions, alarms]))
    counts = np.stack(
        [np.bincount(np.searchsorted(values, v), minlength=values.size) for v in (alarms, lesions)],
        axis=-1,
    )
    counts[0, 0] = len(found)
    return float(froc_from_counts(counts, rates))


def _columns(found):
    return zip(*found, strict=True) if found else [[]] * 3


def pointing_game(scores, mask):
    """Does the largest score lie inside the truth? 1 or 0 for one map; NaN if the mask is empty.

    Where several pixels share the largest score, their share inside: a constant map scores the
    prevalence. Paper: Zhang et al. 2018 (doi:10.1007/s11263-017-1059-x), without a margin.
    """
    ((scores, mask),) = check_maps([scores], [mask])
    return float(np.mean(mask[scores == scores.max()])) if mask.any() else float("nan")


def boxes_of(mask):
    """Tight boxes (N, 4), x, y, width and height, of the 8-connected components of (H, W).

    Where the truth is boxes drawn into a mask, this gives them back unless they touch. A filled
    box covers more than the lesion, so even a perfect map has a pixel AP below 1.
    """
    slices = ndimage.find_objects(components(mask)[0])
    return np.array(
        [(c.start, r.start, c.stop - c.start, r.stop - r.start) for r, c in slices], float
    ).reshape(-1, 4)


def box_iou(boxes, others):
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4): x, y, width, height."""
    first, second = _check_boxes(boxes)[:, None], _check_boxes(others)[None]
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=-1)
    return both / (np.prod(first[..., 2:], -1) + np.prod(second[..., 2:], -1) - both)


def box_recall(scores, boxes, threshold, *, ious=(0.1, 0.2, 0.3, 0.4, 0.5)):
    """Share of true boxes that a box around a component of `scores >= threshold` overlaps.

    scores: (H, W); boxes: (N, 4), x, y, width, height. Returns one share for each least IoU,
    (len(ious),); NaN without boxes. Paper: Wang et al. 2017, ChestX-ray8
    (doi:10.1109/CVPR.2017.369).
    """
    boxes = _check_boxes(boxes)
    if not len(boxes):
        return np.full(len(ious), np.nan)
    overlap = box_iou(boxes, boxes_of(np.asarray(scores) >= threshold))
    return np.array([(overlap >= iou).any(axis=1).mean() for iou in ious])


def _check_boxes(boxes):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= 0).any():
        raise InputError(
            "boxes",
            found=f"{boxes[~np.isfinite(boxes).all(1) | (boxes[:, 2:] <= 0).any(1)][0].tolist()}",
            expected="finite x, y and a width and height above 0",
            remedy="Give boxes as x, y, width, height in pixels, not as two corners.",
        )
    return boxes
