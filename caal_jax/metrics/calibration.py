"""Do the probabilities mean what they say? Calibration errors and proper scores, binary, pooled."""

from typing import NamedTuple

import numpy as np

from caal_jax.errors import InputError
from caal_jax.metrics.inputs import check_same_shape, check_unit_interval

# A probability nearer to 0 or 1 than this is taken as this, so that one certain mistake cannot
# make a log likelihood infinite.
PROBABILITY_FLOOR = 1e-7


class BrierParts(NamedTuple):
    """Brier score = reliability - resolution + uncertainty + within_bins.

    reliability: sum_b (n_b / n) (mean probability - mean label)^2 >= 0, small is good.
    resolution: sum_b (n_b / n) (mean label of the bin - of all)^2 >= 0, large is good.
    uncertainty: of the labels alone; m (1 - m) for hard labels of mean m.
    within_bins: what probabilities that differ inside a bin add; 0 where they do not.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def reliability_from_statistics(statistics, num_bins=15, *, equal_mass=False):
    """Mean score, mean label and weight, (..., num_bins) each, of bins of the score.

    statistics: (..., K, 3), of each entry the negatives, the positives and the sum of scores.
    equal_mass: False for bins of equal width; an entry goes as a whole to the bin of its mean
        score. True for bins of equal weight; entries must come by rising score, and one that an
        edge cuts is shared out in proportion.
    Empty bins are NaN with weight 0.
    """
    statistics = np.asarray(statistics, np.float64)
    batch = statistics.shape[:-2]
    weight, labels, scores = statistics[..., :2].sum(-1), statistics[..., 1], statistics[..., 2]
    if equal_mass:
        columns = np.stack([weight, labels, scores], -2).reshape(
            int(np.prod(batch)), 3, statistics.shape[-2]
        )
        sums = np.array([_equal_mass_sums(one, num_bins) for one in columns])
        weight, labels, scores = np.moveaxis(sums.reshape(*batch, 3, num_bins), -2, 0)
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(weight > 0, scores / weight, 0.0)
        # Bins are closed on the right, so that the first one holds 0 and the last one 1.
        bins = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], mean, side="left")
        size = int(np.prod(batch))
        bins = (bins.reshape(size, -1) + num_bins * np.arange(size)[:, None]).ravel()
        weight, labels, scores = (
            np.bincount(bins, column.ravel(), minlength=num_bins * size).reshape(*batch, num_bins)
            for column in (weight, labels, scores)
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        return scores / weight, labels / weight, weight


def _equal_mass_sums(columns, num_bins):
    """Weight, labels and scores (3, K) shared out over bins of equal weight: (3, num_bins)."""
    sums = np.concatenate([np.zeros((3, 1)), np.cumsum(columns, -1)], -1)
    edges = np.linspace(0, sums[0, -1], num_bins + 1)
    return np.diff([np.interp(edges, sums[0], column) for column in sums])


def expected_calibration_error_from_statistics(statistics, num_bins=15, *, equal_mass=False):
    """Expected calibration error of statistics (..., K, 3), one entry being a score or a bin."""
    gap, share = _gaps(statistics, num_bins, equal_mass)
    return np.sum(share * gap, -1)


def maximum_calibration_error_from_statistics(statistics, num_bins=15, *, equal_mass=False):
    """The largest gap of any bin of statistics (..., K, 3); NaN without items."""
    gap, share = _gaps(statistics, num_bins, equal_mass)
    return np.where(np.isnan(share).any(-1), np.nan, gap.max(-1))[()]


def rms_calibration_error_from_statistics(
    statistics, num_bins=15, *, equal_mass=False, debiased=False
):
    """`rms_calibration_error` of statistics (..., K, 3)."""
    scores, labels, weight = reliability_from_statistics(
        statistics, num_bins, equal_mass=equal_mass
    )
    squared = (scores - labels) ** 2
    if debiased:
        with np.errstate(invalid="ignore", divide="ignore"):
            noise = labels * (1 - labels) / (weight - 1)
        squared = squared - np.where(weight > 1, noise, 0.0)
    with np.errstate(invalid="ignore"):
        share = weight / weight.sum(-1, keepdims=True)
    return np.sqrt(np.maximum(np.sum(share * np.where(weight > 0, squared, 0.0), -1), 0.0))


def _gaps(statistics, num_bins, equal_mass):
    """|mean score - mean label| and share of the weight of each bin; NaN shares for no items."""
    scores, labels, weight = reliability_from_statistics(
        statistics, num_bins, equal_mass=equal_mass
    )
    with np.errstate(invalid="ignore"):
        share = weight / weight.sum(-1, keepdims=True)
    return np.where(weight > 0, np.abs(scores - labels), 0.0), share


def of_healthy_class(statistics):
    """Statistics (..., K, 3) of a probability p -> those of 1 - p for the opposite label."""
    negatives, positives, scores = np.moveaxis(np.asarray(statistics, np.float64), -1, 0)
    return np.stack([positives, negatives, negatives + positives - scores], -1)[..., ::-1, :]


def of_decision(statistics):
    """Statistics (..., K, 3) of a probability -> those of max(p, 1 - p) and of being right.

    The decision is "positive" where p > 1/2. Entries are left where they were, so bins of equal
    weight cannot be made of them.
    """
    statistics = np.asarray(statistics, np.float64)
    positive = statistics[..., 2] > 0.5 * statistics[..., :2].sum(-1)
    return np.where(positive[..., None], statistics, of_healthy_class(statistics)[..., ::-1, :])


def decision_calibration_error_from_statistics(statistics, num_bins=15):
    """`decision_calibration_error` from statistics (..., K, 3)."""
    # Nothing is below one half, so half of these bins stay empty.
    return expected_calibration_error_from_statistics(of_decision(statistics), 2 * num_bins)


def lesion_calibration_error_from_statistics(statistics):
    """Mean of 1 - p over the positives: the ECE inside the lesion, where every label is 1.

    statistics: (..., K, 3); each entry's mean score stands for that of its positives, so the
    result is off by at most the width of an entry. NaN without positives.
    """
    negatives, positives, scores = np.moveaxis(np.asarray(statistics, np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(positives > 0, scores / (negatives + positives), 0.0)
        return 1 - np.sum(positives * mean, -1) / np.sum(positives, -1)


def brier_parts_from_statistics(statistics, num_bins=15):
    """Reliability, resolution and uncertainty (...) each, of statistics (..., K, 3), hard labels.

    Arrays for the bootstrap; `brier_decomposition` returns them with the remainder.
    """
    scores, labels, weight = reliability_from_statistics(statistics, num_bins)
    used = weight > 0
    with np.errstate(invalid="ignore"):
        share = weight / weight.sum(-1, keepdims=True)
    base = np.sum(share * np.where(used, labels, 0.0), -1, keepdims=True)
    reliability = np.sum(share * np.where(used, (scores - labels) ** 2, 0.0), -1)
    resolution = np.sum(share * np.where(used, (labels - base) ** 2, 0.0), -1)
    return reliability, resolution, (base * (1 - base))[..., 0]


def expected_calibration_error(probabilities, labels, num_bins=15, *, equal_mass=False):
    """sum_b (n_b / n) |mean label - mean probability| over bins of the probability.

    probabilities, labels: any equal shapes, all pooled, in [0, 1]; labels may be soft. This is
    the class-1 version: the probability of being anomalous is compared with how often that is so.
    equal_mass: bins of equal numbers of items ("adaptive"; equal probabilities that an edge cuts
        are shared out in proportion) instead of equal width (right-closed, 0 is in the first).
    Empty bins are skipped. NaN without items.
    Papers: Naeini et al. 2015, Guo et al. 2017 (doi:10.48550/arXiv.1706.04599); equal mass:
    Nguyen and O'Connor 2015 (doi:10.48550/arXiv.1508.05154).
    """
    return float(
        expected_calibration_error_from_statistics(
            _statistics(probabilities, labels, equal_mass), num_bins, equal_mass=equal_mass
        )
    )


def maximum_calibration_error(probabilities, labels, num_bins=15, *, equal_mass=False):
    """The largest |mean label - mean probability| of any bin; arguments as for the expected one."""
    return float(
        maximum_calibration_error_from_statistics(
            _statistics(probabilities, labels, equal_mass), num_bins, equal_mass=equal_mass
        )
    )


def rms_calibration_error(probabilities, labels, num_bins=15, *, equal_mass=False, debiased=False):
    """sqrt(sum_b (n_b / n) (mean label - mean probability)^2); other arguments as for the ECE.

    debiased: subtracts from each square what sampling n_b labels adds on average,
        a (1 - a) / (n_b - 1) for a mean label a; a negative sum becomes 0. For hard labels.
    Paper: Kumar, Liang and Ma 2019 (doi:10.48550/arXiv.1909.10155).
    """
    return float(
        rms_calibration_error_from_statistics(
            _statistics(probabilities, labels, equal_mass),
            num_bins,
            equal_mass=equal_mass,
            debiased=debiased,
        )
    )


def class_wise_calibration_error(probabilities, labels, num_bins=15):
    """Mean over classes of the ECE of "is it this class?", each against its own probability.

    probabilities: (..., K), in [0, 1]; labels: (...), integers from 0 to K - 1. NaN without items.
    Paper: Nixon et al. 2019 (doi:10.48550/arXiv.1904.01685), with bins of equal width.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    num_classes = probabilities.shape[-1]
    if not np.isin(labels, np.arange(num_classes)).all():
        raise InputError(
            "labels",
            found="values that are no class",
            expected=f"integers from 0 to {num_classes - 1}",
            remedy="Number the classes as the last axis of the probabilities does.",
        )
    return float(
        np.mean(
            [
                expected_calibration_error(probabilities[..., k], labels == k, num_bins)
                for k in range(num_classes)
            ]
        )
    )


def decision_calibration_error(probabilities, labels, num_bins=15):
    """ECE of the confidence max(p, 1 - p) in the decision p > 1/2 against its being right.

    The multi-class style; bins are of [1/2, 1]. Where background dominates it says little, which
    is why `expected_calibration_error` looks at the anomalous class. Labels are 0 or 1.
    Paper: Guo et al. 2017 (doi:10.48550/arXiv.1706.04599).
    """
    return float(
        decision_calibration_error_from_statistics(_statistics(probabilities, labels), num_bins)
    )


def brier_score(probabilities, labels):
    """Mean squared difference of probability and label (which may be soft); NaN without items.

    Reference: sklearn.metrics.brier_score_loss.
    """
    probabilities, labels = _check(probabilities, labels)
    return float(np.mean((probabilities - labels) ** 2)) if labels.size else float("nan")


def brier_decomposition(probabilities, labels, num_bins=15):
    """`BrierParts` over equal-width bins; labels are 0 or 1. All NaN without items.

    Paper: Murphy 1973 (doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2).
    """
    parts = map(float, brier_parts_from_statistics(_statistics(probabilities, labels), num_bins))
    return with_remainder(*parts, brier_score(probabilities, labels))


def with_remainder(reliability, resolution, uncertainty, brier):
    """`BrierParts` whose sum is the given Brier score."""
    rest = brier - (reliability - resolution + uncertainty)
    return BrierParts(reliability, resolution, uncertainty, rest)


def negative_log_likelihood(probabilities, labels):
    """-mean[y ln p + (1 - y) ln(1 - p)] in nats, p kept 1e-7 away from 0 and 1; labels may be soft.

    NaN without items. Reference: sklearn.metrics.log_loss.
    """
    probabilities, labels = _check(probabilities, labels)
    if not labels.size:
        return float("nan")
    p = np.clip(probabilities, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return float(-np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p)))


def _statistics(probabilities, labels, equal_mass=False):
    """(negatives, positives, summed score) of each item, or of each distinct score, rising."""
    probabilities, labels = _check(probabilities, labels)
    if not equal_mass:
        return np.stack([1 - labels, labels, probabilities], axis=-1)
    values, which = np.unique(probabilities, return_inverse=True)
    items = np.bincount(which, minlength=values.size)
    positives = np.bincount(which, labels, minlength=values.size)
    return np.stack([items - positives, positives, items * values], axis=-1)


def _check(probabilities, labels):
    probabilities = check_unit_interval("probabilities", probabilities).ravel()
    labels = check_unit_interval("labels", labels).ravel()
    check_same_shape("probabilities", probabilities, "labels", labels)
    return probabilities.astype(np.float64), labels.astype(np.float64)
