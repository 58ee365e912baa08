import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import average_precision_score, roc_auc_score

from caal_jax import metrics
from caal_jax.errors import InputError
from caal_jax.metrics import RiskHistogram

RNG = np.random.default_rng(0)
UNCERTAINTY = RNG.beta(1, 3, 4000)
ERRORS = (RNG.random(4000) < 0.5 * UNCERTAINTY).astype(float)


def literal_aurc(losses, uncertainty):
    """Keeps more and more items; an item inside a block of ties costs the block's mean."""
    costs = [losses[uncertainty == u].mean() for u in uncertainty]
    kept = sorted(zip(uncertainty, costs, strict=True))
    return np.mean([np.mean([cost for _, cost in kept[:i]]) for i in range(1, len(kept) + 1)])


@pytest.mark.parametrize("decimals", [15, 1])
def test_aurc_matches_its_definition(decimals):
    losses, uncertainty = RNG.random(300), np.round(UNCERTAINTY[:300], decimals)
    want = literal_aurc(losses, uncertainty)
    assert_allclose(metrics.aurc(losses, uncertainty), want, rtol=1e-12)


def test_aurc_by_hand():
    # Kept one by one: risks 0, 1/2, 1/3.
    assert_allclose(metrics.aurc([0, 1, 0], [0.1, 0.2, 0.3]), 5 / 18)
    # Best order: risks 0, 0, 1/3.
    assert_allclose(metrics.excess_aurc([0, 1, 0], [0.1, 0.2, 0.3]), 3 / 18)


def test_aurc_in_the_clear_cases():
    assert metrics.aurc(np.zeros(9), np.arange(9)) == 0
    assert metrics.excess_aurc(ERRORS, ERRORS) == 0
    assert_allclose(metrics.aurc(ERRORS, np.ones(4000)), ERRORS.mean())
    assert abs(metrics.aurc(ERRORS, RNG.random(4000)) - ERRORS.mean()) < 0.03
    rate = ERRORS.mean()
    best = rate + (1 - rate) * np.log(1 - rate)
    assert_allclose(metrics.aurc(ERRORS, ERRORS), best, atol=1e-3)
    assert np.isnan(metrics.aurc([], []))


def test_aurc_does_not_depend_on_the_order_of_items():
    order = RNG.permutation(4000)
    uncertainty = np.round(UNCERTAINTY, 2)
    want = metrics.aurc(ERRORS, uncertainty)
    assert_allclose(metrics.aurc(ERRORS[order], uncertainty[order]), want, rtol=1e-12)


def test_error_auroc_matches_sklearn():
    want = roc_auc_score(ERRORS, UNCERTAINTY)
    assert_allclose(metrics.error_auroc(UNCERTAINTY, ERRORS), want, rtol=1e-12)
    assert np.isnan(metrics.error_auroc(UNCERTAINTY, np.zeros(4000)))


@pytest.mark.parametrize(
    "uncertainty",
    [UNCERTAINTY, 1e-6 * UNCERTAINTY, 1e-6 * (1 - ERRORS), 1e-6 * ERRORS, np.ones(4000)],
    ids=["usual", "one bin", "one bin, errors first", "one bin, errors last", "upper end"],
)
def test_streamed_values_are_those_of_bins_and_within_bounds(uncertainty):
    histogram = RiskHistogram(64, upper=1.0).update(ERRORS, uncertainty)
    rounded = np.minimum(np.floor(uncertainty * 64), 63)
    assert_allclose(histogram.aurc(), metrics.aurc(ERRORS, rounded), rtol=1e-10)
    assert_allclose(histogram.error_auroc(), metrics.error_auroc(rounded, ERRORS), rtol=1e-12)
    low, high = histogram.bounds()
    assert low <= metrics.aurc(ERRORS, uncertainty) <= high


def test_bounds_are_narrow_for_usual_uncertainty():
    low, high = RiskHistogram(upper=1.0).update(ERRORS, UNCERTAINTY).bounds()
    assert high - low < 5e-3


def test_risk_at_coverage_matches_its_definition():
    losses, uncertainty = RNG.random(300), UNCERTAINTY[:300]
    for coverage in (0.001, 0.07, 0.8, 1.0):
        kept = losses[np.argsort(uncertainty)][: int(np.ceil(coverage * 300 - 1e-9))]
        found = metrics.risk_at_coverage(losses, uncertainty, coverage)
        assert_allclose(found, kept.mean(), rtol=1e-12)
    # Ties count with their mean: half of the sure pair, then one of three at a mean of 2/3.
    tied = [0, 0, 1, 1, 1], [0.1, 0.2, 0.2, 0.2, 0.3], 0.4
    assert_allclose(metrics.risk_at_coverage(*tied), (0 + 2 / 3) / 2)
    histogram = RiskHistogram(8, upper=1.0).update(tied[0], tied[1])
    assert_allclose(histogram.risk_at_coverage(0.4), (0 + 2 / 3 * 1) / 2, rtol=1e-12)
    assert np.isnan(metrics.risk_at_coverage([], [], 0.5))


def test_streamed_excess_and_average_precision():
    histogram = RiskHistogram(64, upper=1.0).update(ERRORS, UNCERTAINTY)
    rounded = np.floor(UNCERTAINTY * 64)
    want = metrics.aurc(ERRORS, rounded) - metrics.aurc(ERRORS, ERRORS)
    assert_allclose(histogram.excess_aurc(), want, rtol=1e-9)
    want = average_precision_score(ERRORS, rounded)
    assert_allclose(histogram.error_average_precision(), want, rtol=1e-12)
    perfect = RiskHistogram(64, upper=1.0).update(ERRORS, ERRORS)
    assert_allclose(perfect.excess_aurc(), 0, atol=1e-12)


def test_merging_and_curve():
    parts = [
        RiskHistogram(32, upper=np.log(2)).update(x, u)
        for x, u in zip(np.split(ERRORS, 2), np.split(0.6 * UNCERTAINTY, 2), strict=True)
    ]
    pooled = RiskHistogram(32, upper=np.log(2)).update(ERRORS, 0.6 * UNCERTAINTY)
    for one, other in (parts, parts[::-1]):
        merged = RiskHistogram(32, upper=np.log(2)).merge(one).merge(other)
        assert_allclose(merged.statistics, pooled.statistics, rtol=1e-12)
    coverage, risk = (
        RiskHistogram(4, upper=1.0).update([0, 1, 1], [0.1, 0.1, 0.9]).risk_coverage_curve()
    )
    assert_allclose(coverage, [2 / 3, 1])
    assert_allclose(risk, [1 / 2, 2 / 3])


def test_float32_rounding_at_the_upper_end_is_accepted():
    top = np.float32(np.log(2)) * np.ones(3, np.float32)
    assert RiskHistogram(8, upper=np.log(2)).update(np.zeros(3), top).statistics[-1, 0] == 3


def test_empty_is_nan_and_unusable_is_told():
    empty = RiskHistogram(8, upper=1.0)
    assert np.isnan([empty.aurc(), empty.error_auroc(), *empty.bounds()]).all()
    with pytest.raises(InputError, match="uncertainty"):
        empty.update([0, 1], [0, 1.5])
    with pytest.raises(InputError, match="losses"):
        empty.update([0, 3], [0, 1])
    with pytest.raises(InputError, match="upper"):
        empty.merge(RiskHistogram(8, upper=0.5))
    with pytest.raises(InputError, match="shape"):
        metrics.aurc([0, 1], [0])
