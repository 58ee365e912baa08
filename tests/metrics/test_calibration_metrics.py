import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from caal_jax import metrics
from caal_jax.errors import InputError
from caal_jax.metrics import ScoreHistogram
from caal_jax.metrics.calibration import reliability_from_statistics

RNG = np.random.default_rng(0)
PROBABILITIES = RNG.beta(0.5, 0.8, 3000)
LABELS = RNG.random(3000) < PROBABILITIES**2


def literal_ece(probabilities, labels, num_bins):
    total = 0.0
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        inside = (probabilities > low) & (probabilities <= high)
        if b == 0:
            inside |= probabilities == 0
        if inside.any():
            gap = abs(labels[inside].mean() - probabilities[inside].mean())
            total += inside.mean() * gap
    return total


@pytest.mark.parametrize("num_bins", [1, 10, 15])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_calibration_error_matches_its_definition(num_bins, dtype):
    p = np.concatenate([PROBABILITIES, np.linspace(0, 1, 11), [0, 1]]).astype(dtype)
    y = np.concatenate([LABELS, RNG.random(13) < 0.5]).astype(float)
    want = literal_ece(p.astype(np.float64), y, num_bins)
    assert_allclose(metrics.expected_calibration_error(p, y, num_bins), want, atol=1e-12)
    soft = RNG.random(p.size)
    want = literal_ece(p.astype(np.float64), soft, num_bins)
    assert_allclose(metrics.expected_calibration_error(p, soft, num_bins), want, atol=1e-12)


def test_calibration_error_in_the_clear_cases():
    assert metrics.expected_calibration_error(LABELS.astype(float), LABELS) == 0
    constant = np.full(LABELS.size, LABELS.mean())
    assert_allclose(metrics.expected_calibration_error(constant, LABELS), 0, atol=1e-12)
    p = RNG.random(1_000_000)
    assert metrics.expected_calibration_error(p, RNG.random(p.size) < p) < 0.01
    # By hand: all of 0.9 and none of 0.1 wrong half of the time: gaps .4 and .4.
    p, y = np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 1, 0])
    assert_allclose(metrics.expected_calibration_error(p, y), 0.4)


def test_proper_scores_match_sklearn():
    want = brier_score_loss(LABELS, PROBABILITIES)
    assert_allclose(metrics.brier_score(PROBABILITIES, LABELS), want, rtol=1e-12)
    kept = np.clip(PROBABILITIES, 1e-7, 1 - 1e-7)
    want = log_loss(LABELS, kept)
    assert_allclose(metrics.negative_log_likelihood(PROBABILITIES, LABELS), want, rtol=1e-9)


def test_proper_scores_by_hand():
    assert_allclose(metrics.brier_score([0.25, 1], [0, 0.5]), (0.0625 + 0.25) / 2)
    assert_allclose(metrics.negative_log_likelihood([0.5, 0.5], [0, 0.3]), np.log(2))
    # A certain mistake costs much, but not everything.
    assert_allclose(metrics.negative_log_likelihood([0.0], [1]), -np.log(1e-7))


def test_undefined_is_nan_and_unusable_is_told():
    for metric in (
        metrics.expected_calibration_error,
        metrics.brier_score,
        metrics.negative_log_likelihood,
    ):
        assert np.isnan(metric([], []))
        with pytest.raises(InputError, match=r"0\.5 to 2"):
            metric([0.5, 2], [0, 1])
        with pytest.raises(InputError, match="shape"):
            metric([0.5, 1], [1])


def literal_gaps(probabilities, labels, bins):
    """(share, gap, size, mean label) of each used bin; bins: one number for each item."""
    for b in np.unique(bins):
        p, y = probabilities[bins == b], labels[bins == b]
        yield p.size / probabilities.size, abs(p.mean() - y.mean()), p.size, y.mean()


def width_bins(probabilities, num_bins=15):
    return np.maximum(np.ceil(probabilities * num_bins), 1)


def mass_bins(probabilities, num_bins=15):
    """Equal shares of items without ties, whose number the bins divide."""
    return np.argsort(np.argsort(probabilities)) // (probabilities.size // num_bins)


@pytest.mark.parametrize(("equal_mass", "bins"), [(False, width_bins), (True, mass_bins)])
def test_every_norm_matches_its_definition(equal_mass, bins):
    gaps = np.array(list(literal_gaps(PROBABILITIES, LABELS, bins(PROBABILITIES))))
    share, gap, size, rate = gaps.T
    squares = gap**2 - rate * (1 - rate) / (size - 1)
    for metric, options, want in [
        ("expected_calibration_error", {}, share @ gap),
        ("maximum_calibration_error", {}, gap.max()),
        ("rms_calibration_error", {}, np.sqrt(share @ gap**2)),
        ("rms_calibration_error", {"debiased": True}, np.sqrt(share @ squares)),
    ]:
        options["equal_mass"] = equal_mass
        found = getattr(metrics, metric)(PROBABILITIES, LABELS, **options)
        assert_allclose(found, want, rtol=1e-9, err_msg=f"{metric} {options}")
        # Streamed: the fine bins that an edge cuts hold few of the 3,000 items.
        streamed = getattr(ScoreHistogram(3840).update(PROBABILITIES, LABELS), metric)(**options)
        assert_allclose(streamed, want, atol=5e-3, err_msg=f"{metric} {options}")


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_reliability_matches_sklearn(strategy):
    labels, means = calibration_curve(LABELS, PROBABILITIES, n_bins=10, strategy=strategy)
    order = np.argsort(PROBABILITIES)
    y, p = LABELS[order].astype(float), PROBABILITIES[order]
    entries = np.stack([1 - y, y, p], -1)
    equal_mass = strategy == "quantile"
    found = reliability_from_statistics(entries, 10, equal_mass=equal_mass)
    # sklearn's quantile edges fall between items, ours after every tenth of them.
    assert_allclose(found[0], means, atol=2e-3 if equal_mass else 1e-12)
    assert_allclose(found[1], labels, atol=4e-3 if equal_mass else 1e-12)
    assert_allclose(found[2].sum(), 3000)
    # A batch is each of its rows.
    both = reliability_from_statistics(np.stack([entries, 2 * entries]), 10, equal_mass=equal_mass)
    assert_allclose(both[0], np.stack([found[0]] * 2), rtol=1e-12)
    assert_allclose(both[2], np.stack([found[2], 2 * found[2]]), rtol=1e-12)


def test_equal_mass_shares_out_ties():
    # Two bins of two items: 0.1 and half of each 0.5; by hand, the gaps are .3 - .25 and .6 - .75.
    p, y = [0.1, 0.5, 0.5, 0.7], [0, 1, 0, 1]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        found = metrics.expected_calibration_error(
            np.take(p, order), np.take(y, order), 2, equal_mass=True
        )
        assert_allclose(found, (0.05 + 0.15) / 2)
    calibrated = RNG.random(200_000)
    hits = RNG.random(calibrated.size) < calibrated
    assert metrics.expected_calibration_error(calibrated, hits, equal_mass=True) < 0.01
    # What is left of noise shrinks when its expectation is taken off.
    few = calibrated[:2000], hits[:2000]
    assert metrics.rms_calibration_error(*few, debiased=True) < metrics.rms_calibration_error(*few)


def test_class_wise_error_is_the_mean_over_classes():
    logits = RNG.normal(size=(500, 3))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = RNG.integers(0, 3, 500)
    want = np.mean([literal_ece(p[:, k], (labels == k).astype(float), 15) for k in range(3)])
    assert_allclose(metrics.class_wise_calibration_error(p, labels), want, rtol=1e-12)
    # Of two classes it is the ECE, which is why results have the one number alone.
    two = np.stack([1 - PROBABILITIES, PROBABILITIES], -1)
    want = metrics.expected_calibration_error(PROBABILITIES, LABELS)
    assert_allclose(metrics.class_wise_calibration_error(two, LABELS.astype(int)), want, atol=1e-9)
    with pytest.raises(InputError, match="no class"):
        metrics.class_wise_calibration_error(p, labels + 1)


def test_decision_error_is_that_of_the_surer_class():
    sure, right = np.maximum(PROBABILITIES, 1 - PROBABILITIES), (PROBABILITIES > 0.5) == LABELS
    # 15 bins of [1/2, 1] are the upper half of 30 bins of [0, 1].
    want = literal_ece(sure, right.astype(float), 30)
    assert_allclose(metrics.decision_calibration_error(PROBABILITIES, LABELS), want, rtol=1e-12)
    histogram = ScoreHistogram(3840).update(PROBABILITIES, LABELS)
    assert_allclose(histogram.decision_calibration_error(), want, atol=1e-9)
    # By hand: 0.9 and 0.1 are right one time in two each.
    assert_allclose(metrics.decision_calibration_error([0.9, 0.9, 0.1, 0.1], [1, 0, 1, 0]), 0.4)


def test_inside_the_lesion_every_label_is_one():
    inside = PROBABILITIES[LABELS]
    want = metrics.expected_calibration_error(inside, np.ones(inside.size))
    assert_allclose(want, 1 - inside.mean(), rtol=1e-12)
    histogram = ScoreHistogram().update(PROBABILITIES, LABELS)
    assert_allclose(histogram.lesion_calibration_error(), want, atol=1 / 4096)
    assert np.isnan(ScoreHistogram().update([0.1], [0]).lesion_calibration_error())


def test_brier_decomposition():
    # Constant within bins, the parts are Murphy's and nothing remains.
    p = np.repeat([0.05, 0.35, 0.8], [50, 30, 20])
    y = np.concatenate([np.arange(50) < 5, np.arange(30) < 6, np.arange(20) < 18])
    parts = metrics.brier_decomposition(p, y)
    rates = np.repeat([0.1, 0.2, 0.9], [50, 30, 20])
    assert_allclose(parts.reliability, np.mean((p - rates) ** 2))
    assert_allclose(parts.resolution, np.mean((rates - y.mean()) ** 2))
    assert_allclose(parts.uncertainty, y.mean() * (1 - y.mean()))
    assert_allclose(parts.within_bins, 0, atol=1e-15)
    # In general they add up all the same.
    found = metrics.brier_decomposition(PROBABILITIES, LABELS)
    total = found.reliability - found.resolution + found.uncertainty + found.within_bins
    assert_allclose(total, brier_score_loss(LABELS, PROBABILITIES), rtol=1e-12)
    assert 0 < abs(found.within_bins) < 1e-3
    streamed = ScoreHistogram(3840).update(PROBABILITIES, LABELS).brier_decomposition()
    assert_allclose(streamed, found, atol=1e-9)


def test_new_metrics_of_nothing_are_nan():
    empty = ScoreHistogram(8)
    for metric in ("maximum", "rms", "decision", "lesion"):
        assert np.isnan(getattr(empty, f"{metric}_calibration_error")()), metric
    assert np.isnan(empty.brier_decomposition()).all()
    for equal_mass in (False, True):
        assert np.isnan(metrics.expected_calibration_error([], [], equal_mass=equal_mass))
        assert np.isnan(metrics.maximum_calibration_error([], [], equal_mass=equal_mass))
