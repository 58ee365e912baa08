import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import brier_score_loss, log_loss

from caal_jax import metrics
from caal_jax.errors import InputError

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
