import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from caal_jax import metrics
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3 == 0
FIRST = np.round(RNG.normal(LABELS, 1.0), 1)
SECOND = np.round(0.6 * FIRST + RNG.normal(0.4 * LABELS, 1.0), 1)


def literal(scores, labels):
    """Every pair of a positive and a negative, one after the other."""
    positives, negatives = scores[labels], scores[~labels]
    wins = np.array([[(x > y) + 0.5 * (x == y) for y in negatives] for x in positives])
    return wins.mean(), wins.mean(axis=1), wins.mean(axis=0)


def test_variance_and_covariance_match_their_definition():
    parts = [literal(scores, LABELS) for scores in (FIRST, SECOND)]
    auroc, covariance = metrics.delong([FIRST, SECOND], LABELS)
    assert_allclose(auroc, [part[0] for part in parts], rtol=1e-12)
    assert_allclose(auroc[0], metrics.roc_auc(FIRST, LABELS), rtol=1e-12)
    for i in range(2):
        for j in range(2):
            of_positives = np.cov(parts[i][1], parts[j][1])[0, 1] / LABELS.sum()
            of_negatives = np.cov(parts[i][2], parts[j][2])[0, 1] / (~LABELS).sum()
            assert_allclose(covariance[i, j], of_positives + of_negatives, rtol=1e-10)
    alone = metrics.delong(FIRST, LABELS)
    assert_allclose(alone[1], covariance[:1, :1])


def test_interval_and_test_follow_from_the_normal_distribution():
    auroc, covariance = metrics.delong([FIRST, SECOND], LABELS)
    want = norm.interval(0.9, auroc[0], np.sqrt(covariance[0, 0]))
    assert_allclose(metrics.delong_interval(FIRST, LABELS, level=0.9), want)
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = metrics.delong_test(FIRST, SECOND, LABELS)
    assert_allclose(found.value, auroc[0] - auroc[1])
    assert_allclose([found.low, found.high], norm.interval(0.95, found.value, spread))
    assert_allclose(found.p_value, 2 * norm.cdf(-abs(found.value / spread)))


def test_p_value_agrees_with_a_permutation_test():
    # Under the null, the two runs may be swapped for any image.
    rng = np.random.default_rng(1)
    ranked = [np.argsort(np.argsort(s)) / 60 for s in (FIRST, SECOND)]
    observed = abs(metrics.roc_auc(ranked[0], LABELS) - metrics.roc_auc(ranked[1], LABELS))
    differences = []
    for _ in range(1000):
        swap = rng.random(60) < 0.5
        a, b = np.where(swap, ranked[1], ranked[0]), np.where(swap, ranked[0], ranked[1])
        auroc, _ = metrics.delong([a, b], LABELS)
        differences.append(abs(auroc[0] - auroc[1]))
    want = np.mean(np.array(differences) >= observed - 1e-12)
    assert 0.05 < want < 0.95
    assert abs(metrics.delong_test(*ranked, LABELS).p_value - want) < 0.06


def test_degenerate_cases_are_nan():
    perfect = LABELS.astype(float)
    assert metrics.delong(perfect, LABELS)[0] == 1
    assert np.isnan(metrics.delong_interval(perfect, LABELS)).all()
    same = metrics.delong_test(FIRST, FIRST, LABELS)
    assert same.value == 0
    assert np.isnan(same[1:]).all()
    for labels in (np.zeros(4, bool), [1, 0, 0, 0]):
        assert np.isnan(metrics.delong_interval([0.1, 0.4, 0.2, 0.3], labels)).all()
    assert metrics.delong_interval([0.5, 0.1, 0.4, 0.2], [1, 1, 0, 0])[1] == 1


def test_unusable_input_is_told():
    with pytest.raises(InputError, match=r"\(1, 59\)"):
        metrics.delong(FIRST[1:], LABELS)
