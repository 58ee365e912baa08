"""Time of our metrics beside scikit-learn's, in one table: `python benchmarks/metrics.py`.

Ten million pixels, float32 scores, 5 % anomalous, and once with every other one; the best of
three runs, of one for what takes seconds.
"""

import platform
import time

import numpy as np
import sklearn
from sklearn.metrics import average_precision_score, roc_auc_score

from caal_jax import metrics

NUM_PIXELS = 10_000_000


def seconds(function, repeats=3):
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def exact_pair(scores, labels):
    counts, _ = metrics.rank_counts(scores, labels)
    return metrics.average_precision_from_counts(counts), metrics.roc_auc_from_counts(counts)


def streaming_pair(scores, labels):
    histogram = metrics.ScoreHistogram().update(scores, labels)
    return histogram.average_precision(), histogram.roc_auc()


def sklearn_pair(scores, labels):
    return average_precision_score(labels, scores), roc_auc_score(labels, scores)


def pixels(prevalence):
    rng = np.random.default_rng(0)
    labels = rng.random(NUM_PIXELS) < prevalence
    scores = rng.beta(1 + labels, 4, NUM_PIXELS).astype(np.float32)
    return scores, labels


def regions(num_maps=100, size=256, num_regions=10):
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:size, :size]
    masks = np.zeros((num_maps, size, size), bool)
    for mask in masks:
        for row, column in rng.integers(0, size, (num_regions, 2)):
            mask |= (rows - row) ** 2 + (columns - column) ** 2 < rng.integers(4, 120)
    return (0.3 * masks + 0.7 * rng.random(masks.shape)).astype(np.float32), masks


def stream_regions(maps, masks):
    histogram = metrics.RegionHistogram()
    for scores, mask in zip(maps, masks, strict=True):
        histogram.update(scores, mask)
    return histogram.aupro()


def row(name, ours, reference=None):
    against = "" if reference is None else f"{reference:9.3f} s  {reference / ours:6.1f} x"
    print(f"{name:<46}{ours:9.3f} s  {against}")


def main():
    print(f"{platform.machine()}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}")
    print(f"{'':<46}{'ours':>11}  {'scikit-learn':>11}")
    for prevalence in (0.05, 0.5):
        data = pixels(prevalence)
        reference = seconds(lambda: sklearn_pair(*data), repeats=1)  # noqa: B023
        exact = seconds(lambda: exact_pair(*data))  # noqa: B023
        streaming = seconds(lambda: streaming_pair(*data))  # noqa: B023
        difference = np.abs(np.subtract(exact_pair(*data), sklearn_pair(*data))).max()
        row(f"AP + AUROC exact, {prevalence:.0%} positive", exact, reference)
        row(f"AP + AUROC (+ ECE, Brier, NLL) streaming, {prevalence:.0%}", streaming, reference)
        print(f"  largest difference of the exact pair from scikit-learn {difference:.1e}")

    maps, masks = regions()
    row("AUPRO exact, 100 maps of 256 x 256", seconds(lambda: metrics.aupro(maps, masks)))
    row("AUPRO streaming, the same", seconds(lambda: stream_regions(maps, masks)))
    row("AUPIMO, the same and 50 normal maps", seconds(lambda: aupimo_with_normals(maps, masks), 1))

    rng = np.random.default_rng(0)
    cases = rng.integers(0, 50, (200, 4096, 2))
    labels = np.arange(200) % 2
    for name, metric in (
        ("AP", metrics.average_precision_from_counts),
        ("AUROC", metrics.roc_auc_from_counts),
    ):
        took = seconds(
            lambda: metrics.bootstrap_interval(cases, metric, seed=0, strata=labels),  # noqa: B023
            repeats=1,
        )
        row(f"{name} interval, 1000 resamples of 200 cases", took)


def aupimo_with_normals(maps, masks):
    normal = 0.7 * np.random.default_rng(1).random((50, *maps.shape[1:]), dtype=np.float32)
    nothing = np.zeros(normal.shape, bool)
    return metrics.aupimo(np.concatenate([maps, normal]), np.concatenate([masks, nothing]))


if __name__ == "__main__":
    main()
