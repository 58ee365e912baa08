import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import brute
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from caal_jax.confidence.calibration import (
    Calibration,
    apply,
    calibration_sums,
    fit_image_calibration,
    fit_temperature,
    fit_temperature_from_sums,
    image_probability,
)
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(-1, 1.5, 40_000)
LABELS = RNG.random(LOGITS.size) < expit(LOGITS)


@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_recovers_the_temperature(factor):
    found = fit_temperature(expit(factor * LOGITS), LABELS)
    assert_allclose(found.temperature, factor, rtol=0.04)
    assert found.bias == 0
    # Soft labels, the true probabilities, leave no noise to fit.
    exact = fit_temperature(expit(factor * LOGITS), expit(LOGITS))
    assert_allclose(exact.temperature, factor, rtol=1e-4)


def test_recovers_temperature_and_bias():
    found = fit_temperature(expit(2 * LOGITS + 3), expit(LOGITS), fit_bias=True)
    assert_allclose(found, (2, -1.5), rtol=1e-3)
    assert_allclose(apply(found, expit(2 * LOGITS[:99] + 3)), expit(LOGITS[:99]), atol=2e-3)


def test_matches_a_brute_force_search():
    p, y = expit(3 * LOGITS[:500]), LABELS[:500]

    def loss(log_temperature):
        z = np.log(p / (1 - p)) / np.exp(log_temperature)
        return np.mean(np.logaddexp(0, np.where(y, -z, z)))

    want = np.exp(brute(loss, [(-2, 2)], Ns=400)[0])
    assert_allclose(fit_temperature(p, y).temperature, want, rtol=1e-3)


def test_weights_count_as_repeats():
    p, y, times = expit(LOGITS[:300]), RNG.random(300), RNG.integers(0, 4, 300)
    repeated = fit_temperature(np.repeat(p, times), np.repeat(y, times), fit_bias=True)
    p[times == 0] = np.nan  # an empty bin has no mean
    assert_allclose(fit_temperature(p, y, times, fit_bias=True), repeated, rtol=1e-4)


@pytest.mark.parametrize("fit_bias", [False, True])
def test_sums_give_the_fit_of_the_pixels(fit_bias):
    p = expit(3 * LOGITS - 2)
    sums = sum(
        calibration_sums(*part)
        for part in zip(
            np.split(p.reshape(-1, 20), 4), np.split(LABELS.reshape(-1, 20), 4), strict=True
        )
    )
    want = fit_temperature(p, LABELS, fit_bias=fit_bias)
    assert_allclose(fit_temperature_from_sums(sums, fit_bias=fit_bias), want, rtol=2e-3, atol=2e-3)


def test_sums_of_certain_pixels():
    p = np.array([0.0, 1.0, 1e-9, 1 - 1e-9] * 7)
    sums = calibration_sums(p, p)
    assert_allclose(sums.sum(0), [28, 14, 14])
    assert sums[[0, -1], 0].tolist() == [14, 14]
    assert 0.05 <= fit_temperature_from_sums(sums).temperature <= 20


def test_bounds_hold_where_there_is_no_optimum():
    p = np.array([0.2, 0.8])
    # The likelihood of the first is flat long before the bound.
    assert 0.05 <= fit_temperature(p, [0, 1]).temperature < 0.06
    assert_allclose(fit_temperature(p, [1, 0]).temperature, 20)
    assert np.isfinite(fit_temperature(p, [0, 0], fit_bias=True)).all()


@pytest.mark.parametrize("lift", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"])
def test_apply(lift):
    p = np.array([[0, 1e-12, 0.1, 0.3], [0.5, 0.9, 0.99, 1]], np.float32)
    calibration = Calibration(temperature=2.5, bias=-0.5)
    clipped = np.clip(np.float64(p), 1e-7, np.float64(np.float32(1 - 1e-7)))
    want = expit(np.log(clipped / (1 - clipped)) / 2.5 - 0.5)
    got = lift(lambda x: apply(calibration, x))(p)
    assert_allclose(got, want, rtol=1e-5)
    assert (np.diff(got, axis=1) >= 0).all()
    assert_allclose(apply(Calibration(1.0, 0.0), p), clipped, rtol=1e-4)


@pytest.mark.parametrize(
    ("probabilities", "labels", "weights", "told"),
    [
        ([0.1], [0], [0], "positive weight"),
        ([], [], None, "positive weight"),
        ([1.5], [0], None, "probabilities"),
        ([np.nan], [0], None, "probabilities"),
        ([0.5], [2], None, "labels"),
        ([0.5, 0.5], [1], None, "shape"),
    ],
)
def test_unusable_input_is_told(probabilities, labels, weights, told):
    with pytest.raises(InputError, match=told):
        fit_temperature(probabilities, labels, weights)


def test_image_calibration_matches_logistic_regression():
    # With many overlapping scores Platt's smoothing is negligible.
    healthy, synthetic = RNG.normal(0.2, 0.1, 2000), RNG.normal(0.35, 0.1, 1000)
    found = fit_image_calibration(healthy, synthetic)
    scores = np.concatenate([healthy, synthetic])
    labels = np.repeat([0, 1], [2000, 1000])
    reference = LogisticRegression(C=1e9, tol=1e-10).fit(scores[:, None], labels)
    for score in (0.0, 0.2, 0.3, 0.6):
        want = reference.predict_proba([[score]])[0, 1]
        assert_allclose(image_probability(found, score), want, atol=3e-3)


def test_image_calibration_does_not_depend_on_the_scale():
    healthy, synthetic = RNG.random(20), RNG.random(20) + 0.3
    small = fit_image_calibration(1e-6 * healthy, 1e-6 * synthetic)
    large = fit_image_calibration(1e3 * healthy + 1e4, 1e3 * synthetic + 1e4)
    assert_allclose(
        image_probability(small, 0.8e-6), image_probability(large, 0.8e3 + 1e4), rtol=1e-6
    )


def test_separable_scores_give_a_finite_slope():
    found = fit_image_calibration([0.1, 0.15, 0.2], [0.7, 0.8, 0.9, 0.95])
    assert all(isinstance(value, float) and np.isfinite(value) for value in found)
    probabilities = [image_probability(found, s) for s in (0.1, 0.45, 0.95)]
    assert 0 < probabilities[0] < 0.3 < probabilities[1] < 0.7 < probabilities[2] < 1


def test_equal_or_reversed_scores_give_one_probability():
    # Targets 1/4, 1/4 and 2/3.
    for healthy, synthetic in [([0.5, 0.5], [0.5]), ([0.8, 0.9], [0.1])]:
        found = fit_image_calibration(healthy, synthetic)
        assert found.slope == 0
        assert_allclose(image_probability(found, 0.3), 7 / 18, rtol=1e-6)


def test_image_calibration_needs_scores():
    with pytest.raises(InputError, match="healthy_scores"):
        fit_image_calibration([], [0.5])
    with pytest.raises(InputError, match="synthetic_scores"):
        fit_image_calibration([0.5], [np.nan])
