"""AUPRO and AUPIMO: metrics in which a small lesion weighs as much as a large one."""

import cv2
import numpy as np
from scipy import ndimage

from caal_jax.metrics.inputs import check_maps, check_same_shape, check_unit_interval, chunks
from caal_jax.metrics.ranking import rank_counts


def region_weights(mask):
    """For each pixel of the mask, in `mask[mask]` order, 1 / the size of its connected component.

    mask: (H, W) bool with 8-connected, or (D, H, W) with 26-connected components. The weights
    of one component sum to 1.
    """
    if mask.ndim == 2 and mask.size:  # in half of SciPy's time
        _, components = cv2.connectedComponents(np.uint8(mask), connectivity=8)
    else:
        components, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    components = components[mask]
    return 1 / np.bincount(components)[components]


def aupro_from_counts(counts, fpr_limit=0.3):
    """AUPRO of counts (..., K, 2), negatives and summed region weights by rising score."""
    counts = np.asarray(counts, np.float64)[..., ::-1, :2]
    area, total, regions = _areas(counts, fpr_limit, share=0.5)
    return np.where((total > 0) & (regions > 0), area / fpr_limit, np.nan)[()]


def _areas(counts, fpr_limit, *, share):
    """Area under PRO over FPR up to the limit, of counts (..., K, 2) by *falling* score.

    share: the height between the ends of an entry at which its part of the curve is counted: 0.5
    for the straight line, 0 or 1 for the lowest or highest curve through the same ends.
    """
    fpr, pro = np.moveaxis(np.cumsum(counts, axis=-2), -1, 0)
    total, regions = fpr[..., -1], pro[..., -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        fpr, pro = fpr / total[..., None], pro / regions[..., None]
        start_fpr = fpr - counts[..., 0] / total[..., None]
        start_pro = pro - counts[..., 1] / regions[..., None]
        width = np.clip(fpr_limit - start_fpr, 0, fpr - start_fpr)
        # The entry that the limit cuts ends there, at the height of its straight line.
        kept = np.where(width > 0, width / (fpr - start_fpr), 0.0) if share == 0.5 else 1.0
        area = np.sum(width * (start_pro + share * kept * (pro - start_pro)), axis=-1)
    return area, total, regions


def aupro(maps, masks, fpr_limit=0.3):
    """Area under the per-region overlap curve up to a false positive rate, divided by that rate.

    maps, masks: as many maps as masks, (H, W) or (D, H, W) each; higher is more anomalous; masks
    are 0 or 1, all zeros for a normal image. Per threshold, PRO is the mean over all connected
    components (8- or 26-connected) of their covered share, and FPR the share of false positives
    among all normal pixels of all images. The curve is linear between distinct scores, and
    interpolated at the limit. NaN without components or without normal pixels.
    Paper: Bergmann et al. 2021 (doi:10.1007/s11263-020-01400-4). Reference: MVTec's evaluation.
    """
    pairs = list(check_maps(maps, masks))
    weights = np.concatenate([np.empty(0), *(region_weights(mask) for _, mask in pairs)])
    normal = sum(mask.size for _, mask in pairs) - weights.size
    # Sorting is what takes the time, and normal pixels past the limit cannot matter.
    scores, labels = _at_or_above(pairs, _probable_cut(pairs, fpr_limit))
    if labels.size - weights.size <= fpr_limit * normal:
        scores, labels = _at_or_above(pairs, -np.inf)
    counts, _ = rank_counts(scores, labels, positive_weights=weights)
    left_out = normal + weights.size - labels.size
    return float(aupro_from_counts(np.concatenate([[[left_out, 0.0]], counts]), fpr_limit))


def _probable_cut(pairs, fpr_limit):
    """A score at which the false positive rate, going by every eighth pixel, is past the limit."""
    sample = [one.ravel()[::8][~mask.ravel()[::8]] for one, mask in pairs]
    sample = np.concatenate([np.empty(0, np.float32), *sample])
    rank = int(sample.size * (1 - fpr_limit - 0.01))
    return np.partition(sample, rank)[rank] if rank > 0 else -np.inf


def _at_or_above(pairs, cut):
    """Scores and labels of the pixels with a score >= cut, and of all anomalous ones."""
    scores, labels = [np.empty(0, np.float32)], [np.empty(0, bool)]
    for one, mask in pairs:
        # `compress` takes a fifth of the time of a boolean index.
        kept = ((one >= cut) | mask).ravel()
        scores.append(np.compress(kept, one))
        labels.append(np.compress(kept, mask))
    return np.concatenate(scores), np.concatenate(labels)


class RegionHistogram:
    """The streaming twin of `aupro`: constant-size sums over maps in [0, 1]; two can be merged.

    statistics: (num_bins, 2) float64, normal pixels and summed region weights of equal bins of
    [0, 1]; a stack of those of single cases is what `bootstrap_interval` wants, with
    `aupro_from_counts`.

    Error: the AUPRO is exactly that of the scores rounded down to a bin. `bounds` gives the
    interval that must hold the exact value for the data seen so far.
    """

    def __init__(self, num_bins=4096):
        self.statistics = np.zeros((num_bins, 2))

    def update(self, scores, mask):
        """Adds one map and its mask, (H, W) or (D, H, W), in place; returns itself."""
        ((scores, mask),) = check_maps([scores], [mask])
        scores = check_unit_interval("scores", scores)
        num_bins = len(self.statistics)

        def bins(values):
            index = (values * values.dtype.type(num_bins)).astype(np.intp)
            return np.minimum(index, num_bins - 1)

        counts = self.statistics
        for chunk, inside in chunks(scores.ravel(), mask.ravel()):
            counts[:, 0] += np.bincount(bins(chunk[~inside]), minlength=num_bins)
        counts[:, 1] += np.bincount(bins(scores[mask]), region_weights(mask), minlength=num_bins)
        return self

    def merge(self, other):
        """Adds another histogram of as many bins, in place; returns itself."""
        check_same_shape(
            "statistics", other.statistics, "the histogram merged into", self.statistics
        )
        self.statistics += other.statistics
        return self

    def aupro(self, fpr_limit=0.3):
        return float(aupro_from_counts(self.statistics, fpr_limit))

    def bounds(self, fpr_limit=0.3):
        """Interval (low, high) that must hold the exact AUPRO."""
        if not self.statistics.any(axis=0).all():
            return float("nan"), float("nan")
        low, high = (_areas(self.statistics[::-1], fpr_limit, share=s)[0] for s in (0, 1))
        return float(low / fpr_limit), float(high / fpr_limit)


def aupimo(maps, masks, *, fpr_bounds=(1e-5, 1e-4), num_thresholds=300_000):
    """Per-image recall, averaged over the log of a strict false positive rate on normal images.

    maps, masks: as many maps as masks, (H, W) or (D, H, W) each; masks are 0 or 1, and an image
    whose mask is all zeros is normal. Thresholds are spaced evenly between the smallest and the
    largest score of the normal images; FPR is the mean over normal images of their share of
    pixels >= the threshold.
    Returns (N,) float64 in [0, 1], NaN for normal images. All NaN if there is no normal image or
    if 30 thresholds or fewer fall between the bounds: the bounds need about 1e5 normal pixels
    and scores that differ. Report the mean over abnormal images with its spread.
    Paper: Bertoldo et al. 2024 (doi:10.48550/arXiv.2401.01984). Reference: anomalib's AUPIMO,
    which raises where we return NaN.
    """
    pairs = list(check_maps(maps, masks))
    result = np.full(len(pairs), np.nan)
    normal = [scores for scores, mask in pairs if not mask.any()]
    if not normal:
        return result
    low, high = min(m.min() for m in normal), max(m.max() for m in normal)
    thresholds = np.linspace(low, high, num_thresholds, dtype=np.float64)
    fpr = np.zeros(num_thresholds)
    for scores in normal:
        fpr += _share_at_or_above(scores, thresholds) / len(normal)
    lower, upper = (np.argmin(np.abs(fpr - bound)) for bound in fpr_bounds)
    if lower - upper + 1 <= 30 or fpr[lower] == 0:
        return result
    kept = slice(upper, lower + 1)
    log_fpr = np.log(fpr[kept])[::-1]
    for index, (scores, mask) in enumerate(pairs):
        if mask.any():
            recall = _share_at_or_above(scores[mask], thresholds[kept])[::-1]
            area = np.trapezoid(recall, log_fpr) / np.log(fpr_bounds[1] / fpr_bounds[0])
            result[index] = np.clip(area, 0, 1)
    return result


def aupimo_from_counts(counts, *, fpr_bounds=(1e-5, 1e-4), share=0.5):
    """`aupimo` of binned counts (N, K, 2+), one row for each image: (N,), NaN for normal images.

    The streaming twin: thresholds are the edges of the bins, where rates are exact, so all error
    comes from between them. share: the height between two edges at which the curve is counted,
    0.5 for the straight line in ln FPR; 0 and 1 give the interval that must hold the area under
    the exact curve. All NaN without a normal image, or if the rates at the edges, zero left out,
    do not enclose the bounds.
    """
    counts = np.asarray(counts, np.float64)[..., :2]
    false, true = np.moveaxis(np.cumsum(counts[:, ::-1], axis=1), -1, 0)
    abnormal = true[:, -1] > 0
    result = np.full(len(counts), np.nan)
    if abnormal.all():
        return result
    fpr = np.mean(false[~abnormal] / false[~abnormal, -1:], axis=0)
    kept = fpr > 0
    fpr = fpr[kept]
    if fpr[0] > fpr_bounds[0] or fpr[-1] < fpr_bounds[1]:
        return result
    recall = true[abnormal][:, kept] / true[abnormal, -1:]
    start, stop = np.log(fpr[:-1]), np.log(fpr[1:])
    lower, upper = np.log(fpr_bounds)
    left, right = np.clip(start, lower, upper), np.clip(stop, lower, upper)
    if share == 0.5:
        # A segment that a bound cuts counts at the middle of what is left of its straight line.
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(stop > start, ((left + right) / 2 - start) / (stop - start), 0.0)
    area = np.sum((right - left) * (recall[:, :-1] + share * np.diff(recall, axis=1)), axis=1)
    result[abnormal] = area / (upper - lower)
    return result


def _share_at_or_above(scores, thresholds):
    """Share of the scores >= each threshold: (T,)."""
    return 1 - np.searchsorted(np.sort(scores, axis=None), thresholds) / scores.size
