"""Time and memory of our metrics beside peers', in one table: `python benchmarks/metrics.py`.

Ten million pixels, float32 scores, 5 % anomalous, and once with every other one; the best of
three runs, in turns with the peer. Peers: scikit-learn, and for AUPRO one stable argsort
of all pixels (SciPy's labels, NumPy), which gives the same number.
"""

import argparse
import functools
import platform
import time
import tracemalloc

import numpy as np
import sklearn
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from timing import alternate

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
    counts = metrics.bin_counts(scores, labels)
    return metrics.average_precision_from_counts(counts), metrics.roc_auc_from_counts(counts)


def with_calibration(scores, labels):
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


def argsort_aupro(maps, masks, fpr_limit=0.3):
    """Every pixel in one order, as the MVTec evaluation has it."""
    false, found = (~masks).astype(np.float64), np.zeros(maps.shape)
    for weights, mask in zip(found, masks, strict=True):
        labels, _ = ndimage.label(mask, np.ones((3, 3)))
        weights[mask] = 1 / np.bincount(labels.ravel())[labels[mask]]
    order = np.argsort(-maps, axis=None, kind="stable")
    ordered = maps.ravel()[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    fpr, pro = (np.append(0, np.cumsum(x.ravel()[order])[last]) for x in (false, found))
    fpr, pro = fpr / fpr[-1], pro / pro[-1]
    inside = fpr < fpr_limit
    ends = np.append(fpr[inside], fpr_limit), np.append(pro[inside], np.interp(fpr_limit, fpr, pro))
    return np.trapezoid(ends[1], ends[0]) / fpr_limit


def stream_regions(maps, masks):
    histogram = metrics.RegionHistogram()
    for scores, mask in zip(maps, masks, strict=True):
        histogram.update(scores, mask)
    return histogram.aupro()


def stream_objects(maps, masks):
    pairs = zip(maps, masks, strict=True)
    return metrics.froc_from_counts(
        sum(metrics.froc_counts(metrics.detections(*pair)) for pair in pairs)
    )


def volumes(number, size=256):
    """AP, AUROC, Dice, ECE and AUPRO of volumes made one at a time: (MiB beyond one, seconds)."""
    rng = np.random.default_rng(0)
    scored, located, peak, took = metrics.ScoreHistogram(), metrics.RegionHistogram(), 0, 0.0
    for _ in range(number):
        scores = rng.random((size,) * 3, dtype=np.float32)
        mask = np.zeros(scores.shape, bool)
        for corner in rng.integers(0, size - 24, (5, 3)):
            mask[tuple(slice(c, c + 24) for c in corner)] = True
        tracemalloc.start()
        start = time.perf_counter()
        scored.update(scores, mask)
        located.update(scores, mask)
        took += time.perf_counter() - start
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    for value in (scored.average_precision(), scored.roc_auc(), scored.best_dice()):
        assert 0 < value < 1
    assert 0 < scored.expected_calibration_error() < 1
    assert 0 < located.aupro() < 1
    return peak / 2**20, took


def row(name, ours, reference=None):
    against = "" if reference is None else f"{reference:9.3f} s  {reference / ours:6.1f} x"
    print(f"{name:<52}{ours:9.3f} s  {against}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=50, help="volumes of 256 x 256 x 256")
    number = parser.parse_args().volumes
    print(f"{platform.machine()}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}")
    print(f"{'':<52}{'ours':>11}  {'peer':>11}")
    for prevalence in (0.05, 0.5):
        data = pixels(prevalence)
        ways = {
            "exact": exact_pair,
            "streaming": streaming_pair,
            "streaming, with ECE, Brier and NLL": with_calibration,
        }
        calls = [functools.partial(pair, *data) for pair in (*ways.values(), sklearn_pair)]
        *took, reference = alternate(*calls, rounds=3)
        for name, one in zip(ways, took, strict=True):
            row(f"AP + AUROC {name}, {prevalence:.0%} positive", one, reference)
        difference = np.abs(np.subtract(exact_pair(*data), sklearn_pair(*data))).max()
        print(f"  largest difference of the exact pair from scikit-learn {difference:.1e}")

    maps, masks = regions()
    calls = [functools.partial(f, maps, masks) for f in (metrics.aupro, stream_regions)]
    exact, streaming, reference = alternate(*calls, lambda: argsort_aupro(maps, masks), rounds=3)
    row("AUPRO exact, 100 maps of 256 x 256", exact, reference)
    row("AUPRO streaming, the same", streaming, reference)
    difference = abs(argsort_aupro(maps, masks) - metrics.aupro(maps, masks))
    print(f"  difference of the exact one from the peer {difference:.1e}")
    row("AUPIMO, the same and 50 normal maps", seconds(lambda: aupimo_with_normals(maps, masks), 1))
    row("FROC streaming, the same 100 maps", seconds(lambda: stream_objects(maps, masks)))

    rng = np.random.default_rng(0)
    cases, others = rng.integers(0, 50, (2, 200, 4096, 2))
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
    took = seconds(
        lambda: metrics.paired_bootstrap(
            cases, others, metrics.average_precision_from_counts, seed=0, strata=labels
        ),
        repeats=1,
    )
    row("AP difference of two runs, the same", took)
    if number:
        memory, took = volumes(number)
        row(f"AP, AUROC, Dice, ECE, AUPRO of {number} volumes of 256^3", took)
        print(f"  {memory:.0f} MiB beyond one volume and its mask")


def aupimo_with_normals(maps, masks):
    normal = 0.7 * np.random.default_rng(1).random((50, *maps.shape[1:]), dtype=np.float32)
    nothing = np.zeros(normal.shape, bool)
    return metrics.aupimo(np.concatenate([maps, normal]), np.concatenate([masks, nothing]))


if __name__ == "__main__":
    main()
