"""Confidence intervals by resampling cases or patients, never pixels.

Pixels of one image err together, so an interval over pixels would be far too narrow. Each case is
reduced once to sums (a histogram); a resample is then a weighted sum of those.
"""

from typing import NamedTuple

import numpy as np

from caal_jax.errors import InputError
from caal_jax.metrics.inputs import check_binary, check_same_shape, check_scores


def resample_weights(num_cases, *, num_resamples, seed, strata=None, clusters=None):
    """How often each case is drawn in each resample: (num_resamples, num_cases) float64.

    strata: (num_cases,) labels; each stratum keeps its number of draws, so that a test set with
    few normal or abnormal images keeps both. clusters: (num_cases,) patients; all cases of one
    are drawn together, and belong to the stratum of its largest label.
    """
    clusters = np.arange(num_cases) if clusters is None else np.asarray(clusters)
    names, member = np.unique(clusters, return_inverse=True)
    stratum = np.zeros(names.size, np.int64)
    if strata is not None:
        _, coded = np.unique(np.asarray(strata), return_inverse=True)
        np.maximum.at(stratum, member, coded)
    rng = np.random.default_rng(seed)
    drawn = np.empty((num_resamples, names.size))
    for one in np.unique(stratum):
        inside = np.flatnonzero(stratum == one)
        drawn[:, inside] = rng.multinomial(
            inside.size, np.full(inside.size, 1 / inside.size), size=num_resamples
        )
    return drawn[:, member]


def bootstrap_interval(
    statistics, metric, *, num_resamples=1000, seed, strata=None, clusters=None, level=0.95
):
    """Percentile interval (low, high) of a metric of summed per-case statistics.

    statistics: (N, ...), additive over cases, such as the stacked `ScoreHistogram.statistics`.
    metric: maps summed statistics (R, ...) to values (R,), such as `average_precision_from_counts`
        or `expected_calibration_error_from_statistics`.
    seed: of the resampling; strata and clusters: see `resample_weights`.
    Resamples for which the metric is undefined are left out; NaN if all are.
    Paper: Efron and Tibshirani 1993, percentile interval over clusters.
    """
    weights = resample_weights(
        len(statistics), num_resamples=num_resamples, seed=seed, strata=strata, clusters=clusters
    )
    return percentile_interval(resampled_values(metric_of_sums(statistics, metric), weights), level)


def image_bootstrap_interval(
    scores, labels, metric, *, num_resamples=1000, seed, clusters=None, level=0.95
):
    """Percentile interval (low, high) of a ranking metric of images, stratified by their label.

    scores, labels: (N,), one for each image; labels are 0 or 1. metric: maps counts (R, K, 2) to
    values (R,), such as `roc_auc_from_counts`. The rest as in `bootstrap_interval`.
    """
    values = metric_of_images(scores, labels, metric)
    weights = resample_weights(
        len(scores), num_resamples=num_resamples, seed=seed, strata=labels, clusters=clusters
    )
    return percentile_interval(resampled_values(values, weights), level)


class Difference(NamedTuple):
    """Metric of the first run minus that of the second: value, its interval, two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    first, second, metric, *, num_resamples=1000, seed, strata=None, clusters=None, level=0.95
):
    """`Difference` of a metric between two runs on the same cases, resampled together.

    first, second: statistics (N, ...) of the runs, in the same order of cases; the rest as in
    `bootstrap_interval`. p_value: (1 + the rarer sign's resamples) / (1 + resamples), doubled, at
    most 1; resamples without any difference count for both signs. NaN where it is undefined.
    """
    weights = resample_weights(
        len(first), num_resamples=num_resamples, seed=seed, strata=strata, clusters=clusters
    )
    runs = [metric_of_sums(statistics, metric) for statistics in (first, second)]
    return _difference(*runs, weights, level)


def paired_image_bootstrap(
    first, second, labels, metric, *, num_resamples=1000, seed, clusters=None, level=0.95
):
    """`paired_bootstrap` of a ranking metric of images, stratified by their label.

    first, second: (N,) scores of the runs; the rest as in `image_bootstrap_interval`.
    """
    runs = [metric_of_images(scores, labels, metric) for scores in (first, second)]
    weights = resample_weights(
        len(labels), num_resamples=num_resamples, seed=seed, strata=labels, clusters=clusters
    )
    return _difference(*runs, weights, level)


def _difference(first, second, weights, level):
    everyone = np.ones((1, weights.shape[1]))
    value = float((first(everyone) - second(everyone))[0])
    return difference_of(
        value, resampled_values(lambda part: first(part) - second(part), weights), level
    )


def difference_of(value, drawn, level=0.95):
    """`Difference` of a value and of its resamples (R,), NaN left out."""
    drawn = drawn[~np.isnan(drawn)]
    rarer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p_value = min(1.0, 2 * (1 + rarer) / (1 + drawn.size)) if drawn.size else float("nan")
    return Difference(value, *percentile_interval(drawn, level), p_value)


def metric_of_sums(statistics, metric):
    """weights (R, N) -> the metric of the weighted sums of statistics (N, ...): (R,)."""
    statistics = np.asarray(statistics, np.float64)
    flat = statistics.reshape(len(statistics), -1)
    return lambda weights: metric((weights @ flat).reshape(len(weights), *statistics.shape[1:]))


def metric_of_images(scores, labels, metric):
    """weights (R, N) -> the metric of images drawn so often: (R,)."""
    scores, labels = check_scores("scores", scores), check_binary("labels", labels)
    check_same_shape("scores", scores, "labels", labels)
    if scores.ndim != 1 or not scores.size:
        raise InputError(
            "scores",
            found=f"shape {scores.shape}",
            expected="one score for each of at least one image",
            remedy="Give images of a test set; pixels belong in bootstrap_interval.",
        )
    order = np.argsort(scores)
    first = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    sides = np.stack([~labels, labels])[:, order].astype(np.float64)

    def values(weights):
        by_class = weights[:, None, order] * sides
        return metric(np.moveaxis(np.add.reduceat(by_class, first, axis=-1), 1, -1))

    return values


def resampled_values(values, weights):
    """values: weights (R, N) -> (R,); returns that for all of `weights`."""
    # A few resamples at a time: the summed histograms of all would not fit the cache.
    return np.concatenate([values(weights[i : i + 50]) for i in range(0, len(weights), 50)])


def percentile_interval(values, level=0.95):
    """(low, high) of the resampled values (R,), NaN left out; NaN where none is defined."""
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
