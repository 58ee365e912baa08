import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import rankdata

from caal_jax import metrics
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)


def literal_counts(errors, uncertainty, threshold, size):
    counts = np.zeros((2, 2))
    for row in range(0, errors.shape[0] - size + 1, size):
        for column in range(0, errors.shape[1] - size + 1, size):
            patch = slice(row, row + size), slice(column, column + size)
            wrong = errors[patch].sum() * 2 >= size**2
            counts[int(wrong), int(uncertainty[patch].mean() >= threshold)] += 1
    return counts


@pytest.mark.parametrize("size", [1, 3, 4])
def test_counts_match_a_loop(size):
    errors = RNG.random((3, 21, 18)) < 0.45
    uncertainty = RNG.random(errors.shape).astype(np.float32)
    found = metrics.patch_counts(errors, uncertainty, threshold=0.5, size=size)
    want = sum(literal_counts(e, u, 0.5, size) for e, u in zip(errors, uncertainty, strict=True))
    assert_allclose(found, want)
    assert (found > 0).all()


def test_ratios_by_hand():
    # 6 right and certain, 2 right and uncertain, 1 wrong and certain, 3 wrong and uncertain.
    counts = np.array([[6.0, 2.0], [1.0, 3.0]])
    assert_allclose(metrics.accurate_given_certain(counts), 6 / 7)
    assert_allclose(metrics.uncertain_given_wrong(counts), 3 / 4)
    assert_allclose(metrics.pavpu(counts), 9 / 12)
    both = metrics.pavpu(np.stack([counts, counts.T]))
    assert_allclose(both, [9 / 12, 9 / 12])
    assert np.isnan(metrics.uncertain_given_wrong(np.array([[5.0, 1.0], [0.0, 0.0]])))


def test_correlation_is_pearsons_of_ranks():
    error = RNG.random((40, 50))
    uncertainty = np.round(error + RNG.normal(0, 0.3, error.shape), 1)  # with ties
    want = np.corrcoef(rankdata(error), rankdata(uncertainty))[0, 1]
    assert_allclose(metrics.error_correlation(error, uncertainty), want, rtol=1e-12)
    few = metrics.error_correlation(error, uncertainty, most=500)
    rows = [values.ravel()[::4] for values in (error, uncertainty)]
    assert_allclose(few, np.corrcoef(*map(rankdata, rows))[0, 1], rtol=1e-12)
    assert np.isnan(metrics.error_correlation(error, np.ones(error.shape)))
    assert np.isnan(metrics.error_correlation([], []))
    with pytest.raises(InputError, match="shape"):
        metrics.error_correlation([0.1, 0.2], [0.1])
