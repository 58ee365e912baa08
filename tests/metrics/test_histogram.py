import numpy as np
import pytest
from numpy.testing import assert_allclose

from caal_jax import metrics
from caal_jax.errors import InputError
from caal_jax.metrics import ScoreHistogram

RNG = np.random.default_rng(0)
LABELS = RNG.random(20_000) < 0.1
EXACT = {
    "average_precision": metrics.average_precision,
    "roc_auc": metrics.roc_auc,
    "fpr_at_tpr": metrics.fpr_at_tpr,
    "best_dice": metrics.best_dice,
}


def adversarial():
    """Scores that a histogram of [0, 1] cannot tell apart well, or that sit on its edges."""
    yield "usual", RNG.beta(1 + 2 * LABELS, 4)
    yield "float32", RNG.beta(1 + 2 * LABELS, 4).astype(np.float32)
    yield "all in one bin, right order", 0.5 + 1e-7 * (LABELS + RNG.random(LABELS.size))
    yield "all in one bin, wrong order", 0.5 + 1e-7 * (~LABELS + RNG.random(LABELS.size))
    yield (
        "positives just under the negatives of each bin",
        (np.floor(RNG.random(LABELS.size) * 256) / 256 + np.where(LABELS, 1e-6, 2e-6)),
    )
    yield "tiny", 1e-9 * RNG.random(LABELS.size)
    yield "on edges", np.round(RNG.random(LABELS.size) * 256) / 256
    yield "constant", np.ones(LABELS.size)
    yield "zeros and ones", LABELS.astype(float)


ADVERSARIAL = dict(adversarial())


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_exact_values_lie_in_the_bounds(name):
    scores = ADVERSARIAL[name]
    histogram = ScoreHistogram(256).update(scores, LABELS)
    for metric, (low, high) in histogram.bounds().items():
        exact, streamed = EXACT[metric](scores, LABELS), getattr(histogram, metric)()
        assert low - 1e-12 <= exact <= high + 1e-12, metric
        assert low - 1e-12 <= streamed <= high + 1e-12, metric


def test_bounds_are_reached_by_the_extreme_orders():
    # One bin: the exact AP is the best with all positives first and tied, ...
    best = ScoreHistogram(2).update([0.2, 0.2, 0.1], [1, 1, 0])
    assert_allclose(best.bounds()["average_precision"][1], 1)
    # ... and the worst with the negatives first: (1/2 + 2/3) / 2.
    worst = ScoreHistogram(2).update([0.3, 0.2, 0.1], [0, 1, 1])
    assert_allclose(worst.bounds()["average_precision"][0], 7 / 12)
    assert_allclose(metrics.average_precision([0.3, 0.2, 0.1], [0, 1, 1]), 7 / 12)
    assert_allclose(worst.bounds()["roc_auc"], (0, 1), atol=1e-15)


def test_bounds_are_narrow_for_usual_scores():
    for low, high in ScoreHistogram().update(ADVERSARIAL["usual"], LABELS).bounds().values():
        assert high - low < 2e-3


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_equals_the_exact_metrics_of_rounded_scores(name):
    scores = ADVERSARIAL[name]
    rounded = np.minimum(np.floor(np.float64(scores) * 256), 255) / 256
    histogram = ScoreHistogram(256).update(scores, LABELS)
    for metric, exact in EXACT.items():
        assert_allclose(getattr(histogram, metric)(), exact(rounded, LABELS), rtol=1e-12)


def test_threshold_and_dice_agree_with_the_scores():
    scores = ADVERSARIAL["usual"]
    histogram = ScoreHistogram().update(scores, LABELS)

    def dice(threshold):
        found = scores >= threshold
        return 2 * (found & LABELS).sum() / (found.sum() + LABELS.sum())

    assert_allclose(dice(histogram.threshold()), histogram.best_dice(), rtol=1e-12)
    assert_allclose(histogram.dice(0.25), dice(0.25), rtol=1e-12)
    assert_allclose(histogram.dice(0.25 + 1e-9), dice(0.25 + 1 / 4096), rtol=1e-12)
    assert histogram.dice(1.0) == 0


def test_proper_scores_are_exact():
    scores = np.append(ADVERSARIAL["usual"], [0, 1, 0, 1])
    labels = np.append(LABELS, [True, False, False, True])
    histogram = ScoreHistogram(64).update(scores, labels)
    assert_allclose(histogram.brier_score(), metrics.brier_score(scores, labels), rtol=1e-12)
    want = metrics.negative_log_likelihood(scores, labels)
    assert_allclose(histogram.negative_log_likelihood(), want, rtol=1e-8)


def test_calibration_error_is_within_its_bound():
    for num_bins, scores in [(4096, ADVERSARIAL["usual"]), (100, ADVERSARIAL["usual"])]:
        histogram = ScoreHistogram(num_bins).update(scores, LABELS)
        cut = np.unique(np.floor(np.arange(1, 15) / 15 * num_bins))
        share = np.isin(np.floor(scores * num_bins), cut).mean()
        exact = metrics.expected_calibration_error(scores, LABELS)
        assert abs(histogram.expected_calibration_error() - exact) <= 2 * share
    # Where bins and edges agree, so do the values.
    aligned = ScoreHistogram(3840).update(scores, LABELS)
    assert_allclose(aligned.expected_calibration_error(), exact, rtol=1e-12)


def test_soft_labels():
    scores, soft = ADVERSARIAL["usual"], RNG.random(LABELS.size)
    histogram = ScoreHistogram(3840).update(scores, soft)
    for metric in ("expected_calibration_error", "brier_score", "negative_log_likelihood"):
        want = getattr(metrics, metric)(scores, soft)
        assert_allclose(getattr(histogram, metric)(), want, rtol=1e-12, err_msg=metric)
    # A soft label is that share of a positive: hard labels given as floats must not differ.
    hard, floats = (ScoreHistogram().update(scores, x) for x in (LABELS, LABELS.astype(float)))
    nearly = ScoreHistogram().update(scores, np.where(LABELS, 1, 1e-12))
    assert (hard.statistics == floats.statistics).all()
    assert_allclose(nearly.average_precision(), hard.average_precision(), rtol=1e-6)


def test_merging_is_pooling_in_any_order():
    parts = [
        ScoreHistogram(128).update(s, y)
        for s, y in zip(np.split(ADVERSARIAL["usual"], 4), np.split(LABELS, 4), strict=True)
    ]
    pooled = ScoreHistogram(128).update(ADVERSARIAL["usual"], LABELS)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        merged = ScoreHistogram(128)
        for index in order:
            merged.merge(parts[index])
        assert (merged.statistics[:, :2] == pooled.statistics[:, :2]).all()
        assert_allclose(merged.statistics, pooled.statistics, rtol=1e-12)
        assert_allclose(merged.loss_sums, pooled.loss_sums, rtol=1e-12)
        assert merged.roc_auc() == pooled.roc_auc()


def test_curves():
    histogram = ScoreHistogram(10).update([0.95, 0.85, 0.15, 0.12], [1, 0, 1, 0])
    precision, recall, thresholds = histogram.precision_recall_curve()
    assert_allclose(precision, [1, 0.5, 0.5])
    assert_allclose(recall, [0.5, 0.5, 1])
    assert_allclose(thresholds, [0.9, 0.8, 0.1])
    false, true, _ = histogram.roc_curve()
    assert_allclose(false, [0, 0.5, 1])
    assert_allclose(true, [0.5, 0.5, 1])
    scores, labels, weight = histogram.reliability(num_bins=2)
    assert_allclose(scores, [0.135, 0.9])
    assert_allclose(labels, [0.5, 0.5])
    assert_allclose(weight, [2, 2])


def test_empty_is_nan():
    histogram = ScoreHistogram(8).update(np.zeros((0, 4)), np.zeros((0, 4)))
    for metric in [*EXACT, "threshold", "expected_calibration_error", "brier_score"]:
        assert np.isnan(getattr(histogram, metric)()), metric
    assert np.isnan([*histogram.bounds().values()]).all()
    assert np.isnan(histogram.reliability()[0]).all()


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [
        ([0.1, 1.1], [0, 1], r"0.1 to 1.1"),
        ([-0.1, 1], [0, 1], r"-0.1 to 1"),
        ([0.1, np.nan], [0, 1], "NaN"),
        ([0.1, 0.2], [0, 2], "0 to 2"),
        ([0.1], [0, 1], "shape"),
    ],
)
def test_unusable_input_is_told(scores, labels, told):
    with pytest.raises(InputError, match=told):
        ScoreHistogram().update(scores, labels)


def test_histograms_of_different_size_do_not_merge():
    with pytest.raises(InputError, match=r"\(8, 3\)"):
        ScoreHistogram(16).merge(ScoreHistogram(8))
