"""Do the probabilities mean what they say? Calibration error and proper scores, binary, pooled."""

import numpy as np

from caal_jax.metrics.inputs import check_same_shape, check_unit_interval

# A probability nearer to 0 or 1 than this is taken as this, so that one certain mistake cannot
# make a log likelihood infinite.
PROBABILITY_FLOOR = 1e-7


def reliability_from_statistics(statistics, num_bins=15):
    """Mean score, mean label and weight, (..., num_bins) each, of equal bins of the score.

    statistics: (..., K, 3), of each entry the negatives, the positives and the sum of scores. An
    entry goes as a whole to the bin of its mean score. Empty bins are NaN with weight 0.
    """
    statistics = np.asarray(statistics, np.float64)
    weight, labels, scores = statistics[..., :2].sum(-1), statistics[..., 1], statistics[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(weight > 0, scores / weight, 0.0)
    # Bins are closed on the right, so that the first one holds 0 and the last one 1.
    bins = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], mean, side="left")
    batch = statistics.shape[:-2]
    size = int(np.prod(batch))
    bins = (bins.reshape(size, -1) + num_bins * np.arange(size)[:, None]).ravel()
    weight, labels, scores = (
        np.bincount(bins, column.ravel(), minlength=num_bins * size).reshape(*batch, num_bins)
        for column in (weight, labels, scores)
    )
    with np.errstate(invalid="ignore"):
        return scores / weight, labels / weight, weight


def expected_calibration_error_from_statistics(statistics, num_bins=15):
    """Expected calibration error of statistics (..., K, 3), one entry being a score or a bin."""
    scores, labels, weight = reliability_from_statistics(statistics, num_bins)
    total = weight.sum(-1)
    with np.errstate(invalid="ignore"):
        return np.where(weight > 0, weight * np.abs(scores - labels), 0.0).sum(-1) / total


def expected_calibration_error(probabilities, labels, num_bins=15):
    """sum_b (n_b / n) |mean label - mean probability| over equal-width bins of the probability.

    probabilities, labels: any equal shapes, all pooled, in [0, 1]; labels may be soft. This is
    the class-1 version: the probability of being anomalous is compared with how often that is so.
    Bins are right-closed, 0 is in the first; empty ones are skipped. NaN without items.
    Paper: Naeini et al. 2015, Guo et al. 2017 (doi:10.48550/arXiv.1706.04599).
    """
    probabilities, labels = _check(probabilities, labels)
    statistics = np.stack([1 - labels, labels, probabilities], axis=-1)
    return float(expected_calibration_error_from_statistics(statistics, num_bins))


def brier_score(probabilities, labels):
    """Mean squared difference of probability and label (which may be soft); NaN without items.

    Reference: sklearn.metrics.brier_score_loss.
    """
    probabilities, labels = _check(probabilities, labels)
    return float(np.mean((probabilities - labels) ** 2)) if labels.size else float("nan")


def negative_log_likelihood(probabilities, labels):
    """-mean[y ln p + (1 - y) ln(1 - p)] in nats, p kept 1e-7 away from 0 and 1; labels may be soft.

    NaN without items. Reference: sklearn.metrics.log_loss.
    """
    probabilities, labels = _check(probabilities, labels)
    if not labels.size:
        return float("nan")
    p = np.clip(probabilities, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return float(-np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p)))


def _check(probabilities, labels):
    probabilities = check_unit_interval("probabilities", probabilities).ravel()
    labels = check_unit_interval("labels", labels).ravel()
    check_same_shape("probabilities", probabilities, "labels", labels)
    return probabilities.astype(np.float64), labels.astype(np.float64)
