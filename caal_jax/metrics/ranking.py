"""Average precision, AUROC, FPR at a TPR, and the best Dice: metrics that only see the order.

Every one of them is computed from *counts*: an array (..., K, 2) of how many negatives and how
many positives hold each of K scores, in ascending order of the score (further columns are
ignored, leading axes are batches). Exact metrics count by distinct score, `ScoreHistogram` by
bin, and the bootstrap by resampled bin, so that there is one arithmetic for all three.

Host code on purpose: XLA's sort on a CPU is 30 times slower than NumPy's.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from caal_jax.metrics.inputs import check_binary, check_same_shape, check_scores


def rank_counts(scores, labels, *, positive_weights=None):
    """Counts by distinct score, exactly as much as the metrics below need.

    scores, labels: any equal shapes; labels are 0 or 1. positive_weights: what one positive adds
    to its column instead of 1, in the order of `scores[labels == 1]`.
    Returns counts (K, 2) float64 and values (K,), the score at which each positive entry sits.
    Negatives between two neighbouring scores of positives share one entry, because no metric
    can tell them apart; such an entry carries the value of the positives above it (+inf on top).
    """
    scores = check_scores("scores", scores).ravel()
    labels = check_binary("labels", labels).ravel()
    check_same_shape("scores", scores, "labels", labels)
    weights = np.ones(1) if positive_weights is None else np.asarray(positive_weights, np.float64)
    below = scores < 0
    if not below.any():
        counts, held = _count_magnitudes(scores, labels, weights)
    else:
        # Negative scores rank by magnitude, upside down.
        below_weights, above_weights = weights, weights
        if positive_weights is not None:
            below_weights, above_weights = weights[below[labels]], weights[~below[labels]]
        mirrored, held_below = _count_magnitudes(-scores[below], labels[below], below_weights)
        counts, held = _count_magnitudes(scores[~below], labels[~below], above_weights)
        middle = mirrored[:1] + counts[:1]
        counts = np.concatenate([mirrored[:0:-1], middle, counts[1:]])
        held = np.concatenate([-held_below[::-1], held])
    return counts, np.append(np.repeat(held, 2), np.inf)


def _count_magnitudes(scores, labels, weights):
    """Counts (2 D + 1, 2) of scores >= 0, of which positives hold D distinct ones: (D,).

    Entries alternate: negatives between two such scores, then all that hold the score. weights:
    (1,) or one for each positive.
    """
    # The bits of a float >= 0 order like an integer and leave the sign bit free, so one SIMD sort
    # of plain integers carries the label along, positives first among equals.
    unsigned = np.uint32 if scores.dtype == np.float32 else np.uint64
    keys = np.ascontiguousarray(scores).view(unsigned) << unsigned(1)
    keys |= (~labels).view(np.uint8)
    _sort(keys)
    at = np.flatnonzero(keys & unsigned(1) == 0)
    held = keys[at]
    first = np.flatnonzero(np.append(True, held[1:] != held[:-1])[: held.size])
    last = np.append(first[1:], held.size)[: first.size] - 1
    held = held[first]
    start, stop = at[first], at[last] + 1
    # Equal negatives follow directly; only scores that have some are worth a search.
    end = stop.copy()
    if first.size:
        tied = np.flatnonzero(keys[np.minimum(stop, keys.size - 1)] == (held | unsigned(1)))
        end[tied] = np.searchsorted(keys, held[tied] | unsigned(1), side="right")

    counts = np.zeros((2 * first.size + 1, 2))
    counts[0::2, 0] = np.append(start, keys.size) - np.append(0, end)
    counts[1::2, 0] = end - stop
    if weights.size == 1:
        counts[1::2, 1] = (stop - start) * weights
    else:
        order = np.argsort(scores[labels], kind="stable")
        counts[1::2, 1] = np.add.reduceat(weights[order], first)
    return counts, (held >> unsigned(1)).view(scores.dtype)


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


def average_precision(scores, labels):
    """Area under the step-wise precision-recall curve: sum_k (R_k - R_{k-1}) P_k.

    scores, labels: any equal shapes, all values pooled; higher is more anomalous; labels 0 or 1.
    Equal scores share one threshold. Random scores give the prevalence: report it beside.
    NaN without positives. Raises InputError for unequal shapes, NaN scores, or other labels.
    Reference: sklearn.metrics.average_precision_score, which returns 0 where we return NaN.
    """
    return float(average_precision_from_counts(rank_counts(scores, labels)[0]))


def roc_auc(scores, labels):
    """P(s+ > s-) + P(s+ = s-) / 2, the area under the ROC curve; NaN if a class is missing.

    Arguments and errors as in `average_precision`. Reference: sklearn.metrics.roc_auc_score.
    """
    return float(roc_auc_from_counts(rank_counts(scores, labels)[0]))


def fpr_at_tpr(scores, labels, tpr=0.95):
    """Smallest false positive rate among the thresholds with a true positive rate >= `tpr`.

    No interpolation between thresholds; NaN if a class is missing. Arguments and errors as in
    `average_precision`. Reference: sklearn.metrics.roc_curve.
    """
    return float(fpr_at_tpr_from_counts(rank_counts(scores, labels)[0], tpr))


def best_dice(scores, labels):
    """Largest Dice (F1) over all thresholds, all values pooled; NaN without positives.

    An oracle number where the labels are the test set's: the report has to say so. Arguments and
    errors as in `average_precision`. Reference: the maximum over
    sklearn.metrics.precision_recall_curve.
    """
    return float(best_dice_from_counts(rank_counts(scores, labels)[0]))


def best_dice_threshold(scores, labels):
    """The score t for which `scores >= t` has the best Dice; the highest if several do."""
    counts, values = rank_counts(scores, labels)
    dice = dice_from_counts(counts)
    if np.isnan(dice).any():
        return float("nan")
    return float(values[np.flatnonzero(dice == dice.max())[-1]])
