"""Accuracy against uncertainty of small patches: does the method know where it errs, coarsely?"""

import numpy as np
from scipy.stats import spearmanr

from caal_jax.metrics.inputs import check_binary, check_same_shape, check_scores


def patch_counts(errors, uncertainty, *, threshold, size=4):
    """Numbers of patches, (2, 2) float64, by [right or wrong, certain or uncertain].

    errors: (..., H, W), 0 or 1. uncertainty: that shape; a patch of size x size pixels is
    uncertain if its mean reaches `threshold`, and wrong if half of its pixels or more are errors.
    Rows and columns that fill no patch are left out. Counts of several maps add up.
    """
    errors, uncertainty = check_binary("errors", errors), check_scores("uncertainty", uncertainty)
    check_same_shape("uncertainty", uncertainty, "errors", errors)
    wrong = _patch_means(errors, size) >= 0.5
    uncertain = _patch_means(uncertainty, size) >= threshold
    counts = np.bincount((2 * wrong + uncertain).ravel(), minlength=4)
    return counts.astype(np.float64).reshape(2, 2)


def _patch_means(values, size):
    *batch, height, width = values.shape
    rows, columns = height // size, width // size
    cut = values[..., : rows * size, : columns * size]
    return cut.reshape(*batch, rows, size, columns, size).mean((-3, -1), dtype=np.float32)


def accurate_given_certain(counts):
    """Share of the certain patches that are right, of `patch_counts` (..., 2, 2)."""
    return _share(counts[..., 0, 0], counts[..., :, 0].sum(-1))


def uncertain_given_wrong(counts):
    """Share of the wrong patches that are uncertain, of `patch_counts` (..., 2, 2)."""
    return _share(counts[..., 1, 1], counts[..., 1, :].sum(-1))


def pavpu(counts):
    """Share of patches that are right and certain, or wrong and uncertain: (..., 2, 2) -> (...).

    Paper: Mukhoti and Gal 2018 (doi:10.48550/arXiv.1811.12709).
    """
    return _share(counts[..., 0, 0] + counts[..., 1, 1], counts.sum((-2, -1)))


def _share(part, whole):
    with np.errstate(invalid="ignore"):
        return np.asarray(part) / whole


def error_correlation(absolute_error, uncertainty, *, most=20_000):
    """Spearman's rank correlation of |probability - label| with the uncertainty of the same items.

    Any equal shapes; of more than `most` items, evenly spaced ones are taken. NaN where either is
    constant. Reference: scipy.stats.spearmanr.
    """
    pair = [np.ravel(values) for values in (absolute_error, uncertainty)]
    check_same_shape("uncertainty", pair[1], "absolute_error", pair[0])
    pair = [values[:: -(-values.size // most) or 1] for values in pair]
    if any(not values.size or np.ptp(values) == 0 for values in pair):
        return float("nan")
    return float(spearmanr(*pair).statistic)
