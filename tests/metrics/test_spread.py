import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from caal_jax import metrics
from caal_jax.errors import InputError
from caal_jax.metrics import SpreadHistogram

RNG = np.random.default_rng(0)
STD = np.exp(RNG.uniform(-5, -1, 6000))
MEAN = RNG.random(6000)
LABELS = MEAN + 1.5 * STD * RNG.normal(size=6000)  # the predicted std is too small


def filled(part=slice(None), **more):
    return SpreadHistogram(**more).update(MEAN[part], STD[part], LABELS[part])


def literal_normalised_error(std, error, num_bins=15):
    order = np.argsort(std)
    bins = zip(*(np.split(a[order], num_bins) for a in (std, error)), strict=True)
    rmse, rmv = np.transpose([(np.mean(e**2) ** 0.5, np.mean(s**2) ** 0.5) for s, e in bins])
    return np.mean(np.abs(rmse - rmv) / rmv)


def test_matches_the_definitions():
    found, z = filled(), (LABELS - MEAN) / STD
    for level, share in found.coverage().items():
        want = np.mean(np.abs(z) <= norm.ppf((1 + level) / 2))
        assert_allclose(share, want, rtol=1e-12)
        assert_allclose(metrics.interval_coverage(MEAN, STD, LABELS, level), want, rtol=1e-12)
    assert_allclose(found.sharpness(), STD.mean(), rtol=1e-12)
    assert_allclose(found.z_score_std(), z.std(), rtol=1e-12)
    want = literal_normalised_error(STD, LABELS - MEAN)
    assert_allclose(found.normalised_error(), want, rtol=2e-3)


def test_a_right_std_covers_what_it_should():
    right = SpreadHistogram().update(MEAN, np.minimum(1.5 * STD, 1), LABELS)
    for level, share in right.coverage().items():
        assert abs(share - level) < 0.02
    assert_allclose(right.z_score_std(), 1, atol=0.03)
    assert right.normalised_error() < 0.05 < 0.25 < filled().normalised_error()
    assert filled().coverage()[0.9] < 0.75


def test_a_label_may_be_a_distribution():
    label_std = RNG.uniform(0, 0.3, 6000)
    found = SpreadHistogram().update(MEAN, STD, LABELS, label_std)
    # Many draws of each label stand in for its distribution.
    drawn = LABELS + label_std * RNG.normal(size=(400, 6000))
    z = (drawn - MEAN) / STD
    for level, share in found.coverage().items():
        assert_allclose(share, np.mean(np.abs(z) <= norm.ppf((1 + level) / 2)), atol=2e-3)
    assert_allclose(found.z_score_std(), z.std(), rtol=0.01)
    # One bin has the mean of all draws and all predictions.
    error = np.sqrt(np.mean((drawn - MEAN) ** 2) / np.mean(STD**2)) - 1
    assert_allclose(found.normalised_error(1), error, rtol=0.01)


def test_merging_is_pooling():
    merged = SpreadHistogram().merge(filled(slice(4000, None))).merge(filled(slice(4000)))
    for name in ("statistics", "z_sums", "covered"):
        assert_allclose(getattr(merged, name), getattr(filled(), name), rtol=1e-12)
    with pytest.raises(InputError, match="levels"):
        SpreadHistogram().merge(SpreadHistogram(levels=(0.5,)))
    with pytest.raises(InputError, match="statistics"):
        SpreadHistogram().merge(SpreadHistogram(8))


def test_a_std_of_zero_is_taken_as_the_floor():
    found = SpreadHistogram().update([0.5, 0.5], [0.0, 0.0], [0.5, 0.502])
    assert found.coverage()[0.95] == 0.5
    assert_allclose(found.sharpness(), 1e-3)
    assert_allclose(found.z_score_std(), 1.0)


def test_nothing_is_nan_and_unusable_is_told():
    empty = SpreadHistogram()
    numbers = [*empty.coverage().values(), empty.sharpness(), empty.z_score_std()]
    assert np.isnan([*numbers, empty.normalised_error()]).all()
    with pytest.raises(InputError, match="std"):
        empty.update([0.5], [-0.1], [0.5])
    with pytest.raises(InputError, match="shape"):
        empty.update([0.5, 0.5], [0.1, 0.1], [0.5])
