"""Cells of a study in, one table out: means, intervals over patients and seeds, paired tests."""

from typing import NamedTuple

import numpy as np

from caal_jax import metrics
from caal_jax.metrics.bootstrap import (
    difference_of,
    metric_of_images,
    metric_of_sums,
    percentile_interval,
    resample_weights,
    resampled_values,
)
from caal_jax.summarise import groups_of, statistics_of


class Draws(NamedTuple):
    """A metric of the runs of some seeds, (S,), and on each resample of the patients, (S, R)."""

    seeds: tuple
    value: np.ndarray
    drawn: np.ndarray


class Resampling(NamedTuple):
    """The resamples that all rows of a study share. weights: (R, cases); rng_seed: of the seeds."""

    weights: np.ndarray
    rng_seed: int


def resampling_of(cases, num_resamples, seed=0):
    """Resamples of the patients of a test set, given its `CaseStatistics`."""
    weights = resample_weights(
        len(cases), num_resamples=num_resamples, seed=seed, **groups_of(cases)
    )
    return Resampling(weights, seed)


def pixel_ap(runs, resampling):
    """`Draws` of the pixel AP. runs: {seed: its `CaseStatistics`}, all in one order of cases."""
    masked = np.array([case.has_mask for case in next(iter(runs.values()))])
    of_runs = {
        seed: metric_of_sums(
            statistics_of([case for case in run if case.has_mask], "rank"),
            metrics.average_precision_from_counts,
        )
        for seed, run in runs.items()
    }
    return _draws(of_runs, resampling.weights[:, masked])


def image_auroc(runs, resampling):
    """`Draws` of the image AUROC; runs as in `pixel_ap`."""
    labels = [case.label for case in next(iter(runs.values()))]
    of_runs = {
        seed: metric_of_images([case.score for case in run], labels, metrics.roc_auc_from_counts)
        for seed, run in runs.items()
    }
    return _draws(of_runs, resampling.weights)


METRICS = {"pixel.ap": pixel_ap, "image.auroc": image_auroc}


def _draws(of_runs, weights):
    everyone = np.ones((1, weights.shape[1]))
    value = np.concatenate([values(everyone) for values in of_runs.values()])
    drawn = [resampled_values(values, weights) for values in of_runs.values()]
    return Draws(tuple(of_runs), value, np.stack(drawn))


def mean_and_interval(draws, resampling):
    """(mean over seeds, low, high): a 95% interval over patients and seeds, both drawn anew."""
    means = _over_seeds(draws.drawn, resampling)
    return float(draws.value.mean()), *percentile_interval(means)


def paired(first, second, resampling):
    """`metrics.Difference` of the means over the seeds that both have, first minus second.

    Both get the same patients and seeds in each resample. Seed None, of a bar that draws nothing,
    stands for every seed. NaN where no seed is shared.
    """
    shared = [seed for seed in first.seeds if seed in second.seeds or second.seeds == (None,)]
    if not shared:
        return metrics.Difference(*[float("nan")] * 4)
    one = [first.seeds.index(seed) for seed in shared]
    two = [0 if second.seeds == (None,) else second.seeds.index(seed) for seed in shared]
    drawn = _over_seeds(first.drawn[one] - second.drawn[two], resampling)
    value = float((first.value[one] - second.value[two]).mean())
    return difference_of(value, drawn)


def _over_seeds(drawn, resampling):
    seeds, resamples = drawn.shape
    rng = np.random.default_rng(resampling.rng_seed)
    chosen = rng.integers(seeds, size=(seeds, resamples))
    return np.take_along_axis(drawn, chosen, axis=0).mean(0)


def holm(p_values):
    """p-values adjusted for the number of comparisons (Holm 1979), in the given order.

    Entries that are NaN stay NaN and do not count.
    """
    p_values = np.asarray(p_values, np.float64)
    adjusted, largest = np.full(p_values.shape, np.nan), 0.0
    known = np.flatnonzero(~np.isnan(p_values))
    for rank, place in enumerate(known[np.argsort(p_values[known], kind="stable")]):
        largest = max(largest, min(1.0, (known.size - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def table_rows(variants, bars, num_resamples):
    """The rows of a study's table, as plain dicts.

    variants: {`Variant`: {seed: `CaseStatistics` of a finished run}}; bars: {name: the same with
    the one seed None}. Every list holds the same cases in the same order. A row has "name",
    "seeds", for each metric of `METRICS` its "value" and "ci95", and for the variants "against":
    {name of the plain variant or of a bar: {"value", "ci95", "p_value", "p_holm"}} of the pixel AP.
    With N patients no p-value is below 2 / 2^N, that of a test of signs: resamples of a few
    patients would promise more than those patients can.
    """
    everything = {**variants, **bars}
    cases = next(iter(next(iter(everything.values())).values()))
    resampling = resampling_of(cases, num_resamples)
    draws = {
        (row, name): metric(runs, resampling)
        for name, metric in METRICS.items()
        for row, runs in everything.items()
    }
    rows = {}
    for row, runs in everything.items():
        rows[row] = {"name": _name(row), "seeds": [seed for seed in runs if seed is not None]}
        for name in METRICS:
            value, low, high = mean_and_interval(draws[row, name], resampling)
            rows[row][name] = {"value": value, "ci95": [low, high]}
    against = {
        (row, other): paired(draws[row, "pixel.ap"], draws[other, "pixel.ap"], resampling)
        for row in variants
        for other in [row.plain, *bars]
        if other in everything and other != row
    }
    least = 2.0 ** (1 - len({case.patient for case in cases}))
    p_values = [max(one.p_value, least) for one in against.values()]
    for ((row, other), one), p_value, p_holm in zip(
        against.items(), p_values, holm(p_values), strict=True
    ):
        rows[row].setdefault("against", {})[_name(other)] = {
            "value": one.value,
            "ci95": [one.low, one.high],
            "p_value": p_value,
            "p_holm": float(p_holm),
        }
    return list(rows.values())


def _name(row):
    return row if isinstance(row, str) else row.label
