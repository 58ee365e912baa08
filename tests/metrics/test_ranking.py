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


@pytest.mark.parametrize("fpr", [0.0, 0.05, 0.3, 1.0])
def test_dice_at_fpr_matches_its_definition(scores, fpr):
    want = 0.0
    for threshold in np.unique(scores[LABELS])[::-1]:
        found = scores >= threshold
        if found[~LABELS].mean() <= fpr:  # each further threshold finds more
            want = 2 * (found & LABELS).sum() / (found.sum() + LABELS.sum())
    assert_allclose(metrics.dice_at_fpr(scores, LABELS, fpr), want, rtol=1e-12)


def test_dice_at_fpr_by_hand():
    # Thresholds .9 (TP 1, FP 0) and .5 (TP 2, FP 1 of 4) at 25 %: 4 / (2 + 1 + 2).
    scores, labels = [0.9, 0.7, 0.5, 0.4, 0.3, 0.2], [1, 0, 1, 0, 0, 0]
    assert_allclose(metrics.dice_at_fpr(scores, labels, 0.25), 4 / 5)
    assert_allclose(metrics.dice_at_fpr(scores, labels, 0.24), 2 / 3)
    assert metrics.dice_at_fpr([0.1, 0.9], [1, 0], 0.5) == 0
    assert np.isnan(metrics.dice_at_fpr([0.1, 0.9], [1, 1], 0.5))
    assert np.isnan(metrics.dice_at_fpr([0.1, 0.9], [0, 0], 0.5))


@pytest.mark.parametrize("name", ["float32", "float64", "few levels", "constant"])
def test_bins_are_those_of_the_histogram_and_add_up(name):
    scores = np.append(SCORES[name], [0, 1, 1]).astype(SCORES[name].dtype)
    labels = np.append(LABELS, [1, 0, 1])
    for num_bins in (1, 100, 4096):
        parts = [
            metrics.bin_counts(scores[part], labels[part], num_bins)
            for part in (slice(0, 700), slice(700, None))
        ]
        want = metrics.ScoreHistogram(num_bins).update(scores, labels).statistics[:, :2]
        assert (parts[0] + parts[1] == want).all()
        assert (parts[1] + parts[0] == metrics.bin_counts(scores, labels, num_bins)).all()


def test_bins_want_the_unit_interval():
    with pytest.raises(InputError, match=r"0\.1 to 1\.1"):
        metrics.bin_counts([0.1, 1.1], [0, 1])
    with pytest.raises(InputError, match="shape"):
        metrics.bin_counts([0.1], [0, 1])


def test_image_dice_weighs_images_alike():
    masks = np.zeros((4, 4, 4), bool)
    masks[0, :2], masks[1, 0, 0] = True, True
    maps = np.zeros((4, 4, 4))
    maps[0, 1:3] = 0.5  # half right: 8 / 16
    maps[2, 0, 0] = 0.5  # an alarm in a normal image; image 3 is rightly empty, image 1 missed
    want = [0.5, 0, 0, 1]
    assert_allclose(metrics.image_dice(maps, masks, 0.5), want)
    assert_allclose(metrics.image_dice(maps, masks, 0.51), [0, 0, 1, 1])
    counts = np.stack([metrics.bin_counts(*case, 8) for case in zip(maps, masks, strict=True)])
    assert_allclose(metrics.image_dice_from_counts(counts, 0.5), want)
    assert_allclose(metrics.image_dice_from_counts(counts, 0.4), want)
    # Rounded up: the bin from 0.5 on does not reach 0.51.
    assert_allclose(metrics.image_dice_from_counts(counts, 0.51), [0, 0, 1, 1])


@pytest.mark.parametrize("weights", [RNG.random(2000), RNG.integers(0, 3, 2000)])
@pytest.mark.parametrize("name", ["float32", "few levels", "signed with ties", "constant"])
def test_weights_match_sklearn(name, weights):
    scores = SCORES[name]
    ap = sk.average_precision_score(LABELS, scores, sample_weight=weights)
    auroc = sk.roc_auc_score(LABELS, scores, sample_weight=weights)
    assert_allclose(metrics.average_precision(scores, LABELS, weights=weights), ap, atol=1e-12)
    assert_allclose(metrics.roc_auc(scores, LABELS, weights=weights), auroc, atol=1e-12)
    false, true, _ = sk.roc_curve(LABELS, scores, sample_weight=weights, drop_intermediate=False)
    found = metrics.fpr_at_tpr(scores, LABELS, 0.8, weights=weights)
    assert_allclose(found, false[true >= 0.8].min(), atol=1e-12)
    precision, recall, _ = sk.precision_recall_curve(LABELS, scores, sample_weight=weights)
    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert_allclose(metrics.best_dice(scores, LABELS, weights=weights), dice.max(), atol=1e-12)


def test_whole_weights_are_repetitions():
    weights = RNG.integers(0, 3, 2000)
    scores = SCORES["few levels"]
    repeated = np.repeat(scores, weights), np.repeat(LABELS, weights)
    found = metrics.dice_at_fpr(scores, LABELS, weights=weights)
    assert_allclose(found, metrics.dice_at_fpr(*repeated))
    counts = metrics.bin_counts(scores, LABELS, 50, weights=weights)
    assert (counts == metrics.bin_counts(*repeated, 50)).all()
    with pytest.raises(InputError, match="weights"):
        metrics.roc_auc(scores, LABELS, weights=-weights)
    with pytest.raises(InputError, match="weights"):
        metrics.bin_counts(scores, LABELS, weights=weights[1:])
