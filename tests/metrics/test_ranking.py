import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn import metrics as sk

from caal_jax import metrics
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
LABELS = RNG.random(2000) < 0.2
SCORES = {
    "float32": RNG.beta(1 + 2 * LABELS, 4).astype(np.float32),
    "float64": RNG.beta(1 + 2 * LABELS, 4),
    "float16": RNG.beta(1 + 2 * LABELS, 4).astype(np.float16),
    "few levels": np.round(RNG.beta(1 + 2 * LABELS, 4), 1),
    "integers": RNG.integers(-3, 5, 2000) + LABELS,
    "signed float32": RNG.normal(LABELS, 1).astype(np.float32),
    "signed with ties": np.round(RNG.normal(LABELS, 1), 1),
    "huge": RNG.normal(LABELS, 1) * 1e300,
    "negative only": -np.round(RNG.random(2000), 2),
    "minus zero": np.where(RNG.random(2000) < 0.5, -0.0, RNG.integers(0, 2, 2000)),
    "constant": np.full(2000, 0.3),
}


@pytest.fixture(params=SCORES)
def scores(request):
    return SCORES[request.param]


def test_average_precision_matches_sklearn(scores):
    want = sk.average_precision_score(LABELS, scores)
    assert_allclose(metrics.average_precision(scores, LABELS), want, rtol=0, atol=1e-12)


def test_roc_auc_matches_sklearn(scores):
    want = sk.roc_auc_score(LABELS, scores)
    assert_allclose(metrics.roc_auc(scores, LABELS), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tpr", [0.5, 0.95, 1.0])
def test_fpr_at_tpr_matches_sklearn(scores, tpr):
    false, true, _ = sk.roc_curve(LABELS, scores, drop_intermediate=False)
    want = false[true >= tpr].min()
    assert_allclose(metrics.fpr_at_tpr(scores, LABELS, tpr), want, rtol=0, atol=1e-12)


def test_best_dice_and_its_threshold_match_sklearn(scores):
    precision, recall, thresholds = sk.precision_recall_curve(LABELS, scores)
    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best = metrics.best_dice(scores, LABELS)
    assert_allclose(best, dice.max(), rtol=0, atol=1e-12)
    threshold = metrics.best_dice_threshold(scores, LABELS)
    # Rounding may order equal Dice values differently: what the threshold achieves has to agree.
    assert_allclose(sk.f1_score(LABELS, scores >= threshold), best, rtol=0, atol=1e-12)
    assert threshold in thresholds


def test_blocks_sorted_in_parallel_merge():
    labels = RNG.random((1 << 20) + 7) < 0.01
    scores = np.round(RNG.random(labels.size), 4).astype(np.float32)
    want = sk.roc_auc_score(labels, scores)
    assert_allclose(metrics.roc_auc(scores, labels), want, rtol=0, atol=1e-12)


def test_by_hand():
    # Descending: hit (P 1), hit ... .9 + | .8 - | .1 +: AP = 1/2 * 1 + 1/2 * 2/3.
    scores, labels = [0.9, 0.8, 0.1], [1, 0, 1]
    assert_allclose(metrics.average_precision(scores, labels), 5 / 6)
    assert metrics.roc_auc(scores, labels) == 0.5
    assert metrics.fpr_at_tpr(scores, labels) == 1
    assert metrics.fpr_at_tpr(scores, labels, tpr=0.5) == 0
    assert_allclose(metrics.best_dice(scores, labels), 4 / 5)
    assert metrics.best_dice_threshold(scores, labels) == 0.1


def test_equal_best_dice_gives_the_highest_threshold():
    # Dice of {.9} is 2/3 with two positives; {.9, .5, .4, .1} gives 4/6.
    assert metrics.best_dice_threshold([0.9, 0.5, 0.4, 0.1], [1, 0, 0, 1]) == 0.9


def test_fpr_forgives_the_rounding_of_the_rate():
    # Three of ten positives stand above the negative, and 0.3 < 0.1 + 0.2 in floats.
    scores, labels = np.arange(11.0), np.arange(11) != 7
    assert metrics.fpr_at_tpr(scores, labels, tpr=0.1 + 0.2) == 0
    assert metrics.fpr_at_tpr(scores, labels, tpr=0.31) == 1


@pytest.mark.parametrize("labels", [np.zeros(4, bool), np.ones(4, bool), np.zeros(0)])
def test_undefined_is_nan(labels):
    scores = np.linspace(0, 1, labels.size)
    assert np.isnan(metrics.roc_auc(scores, labels))
    assert np.isnan(metrics.fpr_at_tpr(scores, labels))
    for metric in (metrics.average_precision, metrics.best_dice, metrics.best_dice_threshold):
        assert np.isnan(metric(scores, labels)) == (not labels.any())


def test_all_positive_is_perfect():
    assert metrics.average_precision([0.2, 0.7], [1, 1]) == 1
    assert metrics.best_dice([0.2, 0.7], [1, 1]) == 1


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [
        ([0.1, np.nan], [0, 1], "1 NaN or infinite"),
        ([0.1, np.inf], [0, 1], "1 NaN or infinite"),
        ([0.1, 0.2], [0, 2], "other than 0 and 1"),
        ([0.1, 0.2], [0, 0.5], "other than 0 and 1"),
        ([0.1, 0.2, 0.3], [0, 1], r"\(3,\)"),
    ],
)
def test_unusable_input_is_told(scores, labels, told):
    with pytest.raises(InputError, match=told):
        metrics.average_precision(scores, labels)


def test_inputs_are_left_alone():
    scores, labels = SCORES["float32"].copy(), LABELS.copy()
    metrics.roc_auc(scores, labels)
    assert (scores == SCORES["float32"]).all()
    assert (labels == LABELS).all()
