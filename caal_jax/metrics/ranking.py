"""Average precision, AUROC, FPR at a TPR, and Dice: metrics that only see the order.

Every one of them is computed from *counts*: an array (..., K, 2) of how many negatives and how
many positives hold each of K scores, in ascending order of the score (further columns are
ignored, leading axes are batches). Exact metrics count by distinct score, `bin_counts` and
`ScoreHistogram` by bin, and the bootstrap by resampled bin, so that there is one arithmetic.

Host code on purpose: XLA's sort on a CPU is 30 times slower than NumPy's.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from caal_jax.metrics.inputs import (
    check_binary,
    check_maps,
    check_same_shape,
    check_scores,
    check_unit_interval,
    chunks,
)


def rank_counts(scores, labels, *, weights=None, positive_weights=None):
    """Counts by distinct score, exactly as much as the metrics below need.

    scores, labels: any equal shapes; labels are 0 or 1. weights: of that shape, what each item
    adds instead of 1, finite and >= 0; slower, and every distinct score then has its own entry.
    positive_weights: the same of positives alone, in the order of `scores[labels == 1]`.
    Returns counts (K, 2) float64 and values (K,), a score within each entry; all items of an entry
    with positives hold it. Negatives between two neighbouring scores of positives may share one
    entry, because no metric can tell them apart.
    """
    scores = check_scores("scores", scores).ravel()
    labels = check_binary("labels", labels).ravel()
    check_same_shape("scores", scores, "labels", labels)
    if weights is not None:
        return _weighted_counts(scores, labels, _check_weights(weights, scores))
    if positive_weights is not None:
        positive_weights = np.asarray(positive_weights, np.float64)
    below = scores < 0
    if not below.any():
        return _count_magnitudes(scores, labels, positive_weights)
    # Negative scores rank by magnitude, upside down.
    of_below, of_above = None, None
    if positive_weights is not None:
        of_below, of_above = positive_weights[below[labels]], positive_weights[~below[labels]]
    mirrored, values_below = _count_magnitudes(-scores[below], labels[below], of_below)
    counts, values = _count_magnitudes(scores[~below], labels[~below], of_above)
    return np.concatenate([mirrored[::-1], counts]), np.append(-values_below[::-1], values)


def _weighted_counts(scores, labels, weights):
    values, entry = np.unique(scores, return_inverse=True)
    sides = [np.bincount(entry, weights * (labels == side), values.size) for side in (0, 1)]
    return np.stack(sides, axis=-1), values


def _check_weights(weights, scores):
    weights = check_unit_interval("weights", np.ravel(weights), np.inf)
    check_same_shape("weights", weights, "scores", scores)
    return weights


def _count_magnitudes(scores, labels, weights):
    """Counts (K, 2) and values (K,) of scores >= 0; weights: None or one for each positive."""
    if not scores.size:
        return np.zeros((1, 2)), np.zeros(1, scores.dtype)
    # The bits of a float >= 0 order like an integer and leave the sign bit free, so one SIMD sort
    # of plain integers carries the label along, positives first among equals.
    unsigned = np.uint32 if scores.dtype == np.float32 else np.uint64
    keys = np.ascontiguousarray(scores).view(unsigned) << unsigned(1)
    keys |= (~labels).view(np.uint8)
    _sort(keys)
    positive = keys & unsigned(1) == 0
    new = np.append(True, keys[1:] ^ keys[:-1] > 1)  # the first of each score
    # A new score needs no entry where it and the one before are negatives alone, which is sure if
    # that one has a single item.
    edge = new.copy()
    edge[1:] &= positive[1:] | positive[:-1] | ~new[:-1]
    at = np.flatnonzero(edge)
    true = np.add.reduceat(positive, at, dtype=np.int64)
    counts = np.empty((at.size, 2))
    np.subtract(np.diff(at, append=keys.size), true, out=counts[:, 0])
    counts[:, 1] = true
    if weights is not None:
        order = np.argsort(scores[labels])  # equals share an entry in any order
        entry = np.repeat(np.arange(at.size), true)
        counts[:, 1] = np.bincount(entry, weights[order], at.size)
    return counts, (keys[at] >> unsigned(1)).view(scores.dtype)


def bin_counts(scores, labels, num_bins=4096, *, weights=None):
    """Counts (num_bins, 2) float64 by equal bins of [0, 1]: the streaming twin of `rank_counts`.

    scores, labels: any equal shapes; scores in [0, 1], labels 0 or 1. Add the counts of several
    arrays to pool them, in any order. The metrics of counts are exactly those of the scores
    rounded down to a bin, hence exact where no bin holds both classes; `ScoreHistogram.bounds`
    says how far the exact ones can be. weights: as in `rank_counts`.
    """
    scores = check_unit_interval("scores", scores).ravel()
    labels = check_binary("labels", labels).ravel()
    check_same_shape("scores", scores, "labels", labels)
    arrays = (
        (scores, labels) if weights is None else (scores, labels, _check_weights(weights, scores))
    )
    counts = np.zeros(2 * num_bins + 2)
    for chunk, label, *weight in chunks(*arrays):
        # The product is taken in the scores' own precision: exact for a power of two.
        bins = (chunk * chunk.dtype.type(num_bins)).astype(np.int32)
        counts += np.bincount(2 * bins + label, *weight, minlength=counts.size)
    counts[-4:-2] += counts[-2:]  # a score of 1 belongs to the last bin
    return counts[:-2].reshape(num_bins, 2)


def _sort(keys):
    """Sorts in place; a large array in parallel blocks, as NumPy's sort frees the interpreter."""
    num_blocks = min(4, os.cpu_count() or 1) if keys.size > 1 << 20 else 1
    if num_blocks == 1:
        return keys.sort()
    with ThreadPoolExecutor(num_blocks) as pool:
        list(pool.map(np.ndarray.sort, np.array_split(keys, num_blocks)))
    return keys.sort(kind="stable")  # merges sorted runs in linear time


def _cumulate(counts):
    """Negatives and positives at or above each entry, (..., K) each, and the totals (..., 1)."""
    counts = np.asarray(counts, np.float64)
    # Whole numbers, so the order of the sums cannot matter below 2**53.
    above = np.cumsum(counts[..., ::-1, :2], axis=-2)[..., ::-1, :]
    return above[..., 0], above[..., 1], above[..., :1, 0], above[..., :1, 1]


def _or_nan(defined, value):
    return np.where(defined, value, np.nan)[()]


def average_precision_from_counts(counts):
    """Average precision of counts (..., K, 2); see `average_precision`."""
    false, true, _, positives = _cumulate(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true > 0, true / (true + false), 0.0)
        total = np.sum(np.asarray(counts)[..., 1] * precision, axis=-1) / positives[..., 0]
    return _or_nan(positives[..., 0] > 0, total)


def roc_auc_from_counts(counts):
    """Area under the ROC curve of counts (..., K, 2); see `roc_auc`."""
    counts = np.asarray(counts)
    false, _, negatives, positives = _cumulate(counts)
    beaten = negatives - false + 0.5 * counts[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        area = np.sum(counts[..., 1] * beaten, axis=-1) / positives[..., 0] / negatives[..., 0]
    return _or_nan((positives * negatives)[..., 0] > 0, area)


def fpr_at_tpr_from_counts(counts, tpr=0.95):
    """Smallest false positive rate with TPR >= `tpr` of counts (..., K, 2); see `fpr_at_tpr`."""
    false, true, negatives, positives = _cumulate(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The tolerance forgives the rounding of tpr itself: 19 of 20 is 0.95.
        reached = true / positives >= tpr - 1e-12
        rate = np.min(np.where(reached, false, np.inf), axis=-1) / negatives[..., 0]
    return _or_nan((positives * negatives)[..., 0] > 0, rate)


def dice_from_counts(counts):
    """Dice 2TP / (2TP + FP + FN) of counting each entry and all above as positive: (..., K)."""
    false, true, _, positives = _cumulate(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _or_nan(positives > 0, 2 * true / (true + false + positives))


def best_dice_from_counts(counts):
    """Largest Dice over all thresholds of counts (..., K, 2); see `best_dice`."""
    return np.max(dice_from_counts(counts), axis=-1)


def dice_at_fpr_from_counts(counts, fpr=0.05):
    """Dice at a false positive rate of counts (..., K, 2); see `dice_at_fpr`."""
    counts = np.asarray(counts, np.float64)
    false, true, negatives, positives = _cumulate(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The tolerance forgives the rounding of fpr itself: 3 of 10 is 0.3.
        allowed = (false / negatives <= fpr + 1e-12) & (counts[..., 1] > 0)
        # TP grows as the threshold falls, so the most of it marks the lowest allowed threshold.
        found = np.max(np.where(allowed, true, 0.0), axis=-1)
        alarms = np.max(np.where(allowed, false, 0.0), axis=-1)
        dice = 2 * found / (found + alarms + positives[..., 0])
    return _or_nan((positives * negatives)[..., 0] > 0, dice)


def average_precision(scores, labels, *, weights=None):
    """Area under the step-wise precision-recall curve: sum_k (R_k - R_{k-1}) P_k.

    scores, labels: any equal shapes, all values pooled; higher is more anomalous; labels 0 or 1.
    weights: of that shape, >= 0, how often each value counts, such as the volume of its voxel.
    Equal scores share one threshold. Random scores give the prevalence: report it beside.
    NaN without positives. Raises InputError for unequal shapes, NaN scores, or other labels.
    Reference: sklearn.metrics.average_precision_score, which returns 0 where we return NaN.
    """
    return float(average_precision_from_counts(rank_counts(scores, labels, weights=weights)[0]))


def roc_auc(scores, labels, *, weights=None):
    """P(s+ > s-) + P(s+ = s-) / 2, the area under the ROC curve; NaN if a class is missing.

    Arguments and errors as in `average_precision`. Reference: sklearn.metrics.roc_auc_score.
    """
    return float(roc_auc_from_counts(rank_counts(scores, labels, weights=weights)[0]))


def fpr_at_tpr(scores, labels, tpr=0.95, *, weights=None):
    """Smallest false positive rate among the thresholds with a true positive rate >= `tpr`.

    No interpolation between thresholds; NaN if a class is missing. Arguments and errors as in
    `average_precision`. Reference: sklearn.metrics.roc_curve.
    """
    return float(fpr_at_tpr_from_counts(rank_counts(scores, labels, weights=weights)[0], tpr))


def best_dice(scores, labels, *, weights=None):
    """Largest Dice (F1) over all thresholds, all values pooled; NaN without positives.

    An oracle number where the labels are the test set's: the report has to say so. Arguments and
    errors as in `average_precision`. Reference: the maximum over
    sklearn.metrics.precision_recall_curve.
    """
    return float(best_dice_from_counts(rank_counts(scores, labels, weights=weights)[0]))


def dice_at_fpr(scores, labels, fpr=0.05, *, weights=None):
    """Dice at the threshold that finds most among those with a false positive rate <= `fpr`.

    Thresholds are the scores of positives; of those that find as much, the highest counts. 0 if
    each one exceeds the rate; NaN if a class is missing. Arguments and errors as in
    `average_precision`. Paper: Chen et al. 2020 (doi:10.48550/arXiv.2005.00031), 1, 5 and 10 %.
    """
    return float(dice_at_fpr_from_counts(rank_counts(scores, labels, weights=weights)[0], fpr))


def best_dice_threshold(scores, labels):
    """The score t for which `scores >= t` has the best Dice; the highest if several do."""
    counts, values = rank_counts(scores, labels)
    dice = dice_from_counts(counts)
    if np.isnan(dice).any():
        return float("nan")
    return float(values[np.flatnonzero(dice == dice.max())[-1]])


def image_dice(maps, masks, threshold):
    """Dice of `map >= threshold` of each image, (N,); their mean weighs all images alike.

    maps, masks: as many maps as masks, (H, W) or (D, H, W) each. An image without positives
    scores 1 if nothing is found in it and 0 otherwise (Baumgartner et al. 2019, PHiSeg).
    """
    dice = []
    for scores, mask in check_maps(maps, masks):
        found = scores >= threshold
        total = np.count_nonzero(found) + np.count_nonzero(mask)
        dice.append(2 * np.count_nonzero(found & mask) / total if total else 1.0)
    return np.array(dice)


def image_dice_from_counts(counts, threshold):
    """`image_dice` of binned counts (N, K, 2+), the threshold rounded up to the next bin: (N,)."""
    counts = np.asarray(counts, np.float64)[..., :2]
    kept = counts[:, int(np.clip(np.ceil(threshold * counts.shape[1]), 0, counts.shape[1])) :]
    false, true = kept.sum(axis=1).T
    total = false + true + counts[..., 1].sum(axis=1)
    return np.where(total > 0, 2 * true / np.maximum(total, 1), 1.0)
