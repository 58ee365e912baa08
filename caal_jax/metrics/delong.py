"""DeLong's variance of the AUROC of images: intervals and paired tests without resampling.

Images have to be independent of each other: with several of one patient, use the bootstrap.
"""

import numpy as np
from scipy.stats import norm, rankdata

from caal_jax.errors import InputError
from caal_jax.metrics.bootstrap import Difference
from caal_jax.metrics.inputs import check_binary, check_scores


def delong(scores, labels):
    """AUROCs (M,) of M scores of the same images and their covariance (M, M).

    scores: (M, N), or (N,) for one; labels: (N,), 0 or 1. The covariance is NaN with fewer than
    two images of a class, and 0 where every AUROC is 0 or 1: it then says nothing.
    Paper: DeLong et al. 1988 (doi:10.2307/2531595), by the mid-ranks of Sun and Xu 2014
    (doi:10.1109/LSP.2014.2337313).
    """
    scores = np.atleast_2d(check_scores("scores", scores)).astype(np.float64)
    labels = check_binary("labels", labels)
    if labels.ndim != 1 or scores.shape[1:] != labels.shape:
        raise InputError(
            "scores",
            found=f"shape {scores.shape} for labels of shape {labels.shape}",
            expected="(N,) or (M, N) scores for (N,) labels",
            remedy="Hand over one score for each image, in the same order.",
        )
    positives, negatives = scores[:, labels], scores[:, ~labels]
    m, n = positives.shape[1], negatives.shape[1]
    if not m or not n:
        return np.full(len(scores), np.nan), np.full((len(scores),) * 2, np.nan)
    ranks = rankdata(scores, axis=1)
    # The share of the other class that each image beats, ties counting half.
    beats = (ranks[:, labels] - rankdata(positives, axis=1)) / n
    beaten = 1 - (ranks[:, ~labels] - rankdata(negatives, axis=1)) / m
    if min(m, n) < 2:
        return beats.mean(axis=1), np.full((len(scores),) * 2, np.nan)
    return beats.mean(axis=1), np.atleast_2d(np.cov(beats) / m + np.cov(beaten) / n)


def delong_interval(scores, labels, level=0.95):
    """Interval (low, high) of the AUROC of images, cut to [0, 1]; scores, labels: (N,).

    NaN where the variance is 0 or unknown (see `delong`): bootstrap instead.
    """
    auroc, covariance = delong(scores, labels)
    deviation = np.sqrt(covariance[0, 0])
    if not deviation > 0:
        return float("nan"), float("nan")
    reach = norm.ppf((1 + level) / 2) * deviation
    return float(max(0.0, auroc[0] - reach)), float(min(1.0, auroc[0] + reach))


def delong_test(first, second, labels, level=0.95):
    """`Difference` of the AUROCs of two runs on the same images; arguments (N,) each.

    Interval and p-value are NaN where the variance is 0 or unknown: bootstrap instead.
    """
    auroc, covariance = delong([first, second], labels)
    value = float(auroc[0] - auroc[1])
    contrast = np.array([1.0, -1.0])
    deviation = np.sqrt(max(contrast @ covariance @ contrast, 0.0))
    # Equal runs differ by rounding alone.
    if not deviation > 1e-12:
        return Difference(value, float("nan"), float("nan"), float("nan"))
    reach = norm.ppf((1 + level) / 2) * deviation
    p_value = 2 * norm.sf(abs(value) / deviation)
    return Difference(value, value - reach, value + reach, float(p_value))
