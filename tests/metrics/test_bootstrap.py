import numpy as np
import pytest
from numpy.testing import assert_allclose

from caal_jax import metrics
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
STRATA = np.arange(24) % 3 == 0
CASES = [(RNG.beta(1 + STRATA[i], 3, 400), (RNG.random(400) < 0.3) & STRATA[i]) for i in range(24)]
STATISTICS = np.stack([metrics.ScoreHistogram(64).update(*case).statistics for case in CASES])
IMAGE_SCORES = np.round(RNG.normal(STRATA, 1.0), 1)


def percentiles(values):
    return np.quantile(values, [0.025, 0.975])


@pytest.mark.parametrize(
    ("metric", "streamed"),
    [
        (metrics.average_precision_from_counts, "average_precision"),
        (metrics.roc_auc_from_counts, "roc_auc"),
        (metrics.fpr_at_tpr_from_counts, "fpr_at_tpr"),
        (metrics.best_dice_from_counts, "best_dice"),
        (metrics.expected_calibration_error_from_statistics, "expected_calibration_error"),
    ],
)
def test_interval_equals_a_plain_loop_over_resamples(metric, streamed):
    weights = metrics.resample_weights(24, num_resamples=120, seed=3, strata=STRATA)
    values = []
    for drawn in weights:
        pooled = metrics.ScoreHistogram(64)
        for index in np.repeat(np.arange(24), drawn.astype(int)):
            pooled.update(*CASES[index])
        values.append(getattr(pooled, streamed)())
    found = metrics.bootstrap_interval(STATISTICS, metric, num_resamples=120, seed=3, strata=STRATA)
    assert_allclose(found, percentiles(values), rtol=1e-9)
    assert found[0] < found[1]


@pytest.mark.parametrize(
    ("metric", "exact"),
    [
        (metrics.average_precision_from_counts, metrics.average_precision),
        (metrics.roc_auc_from_counts, metrics.roc_auc),
    ],
)
def test_image_interval_equals_a_plain_loop_over_resamples(metric, exact):
    weights = metrics.resample_weights(24, num_resamples=150, seed=5, strata=STRATA)
    values = []
    for drawn in weights.astype(int):
        values.append(exact(np.repeat(IMAGE_SCORES, drawn), np.repeat(STRATA, drawn)))
    found = metrics.image_bootstrap_interval(
        IMAGE_SCORES, STRATA, metric, num_resamples=150, seed=5
    )
    assert_allclose(found, percentiles(values), rtol=1e-12)


def test_weights_keep_strata_and_clusters():
    clusters = np.repeat(np.arange(12), 2)
    strata = np.repeat(np.arange(12) % 4 == 0, 2)
    weights = metrics.resample_weights(
        24, num_resamples=50, seed=0, strata=strata, clusters=clusters
    )
    assert (weights[:, ::2] == weights[:, 1::2]).all()
    assert (weights[:, strata].sum(1) == 6).all()
    assert (weights[:, ~strata].sum(1) == 18).all()
    assert weights.std() > 0.5
    # A patient with one abnormal case is abnormal.
    mixed = metrics.resample_weights(
        4, num_resamples=50, seed=0, strata=[0, 1, 0, 0], clusters=[7, 7, 8, 9]
    )
    assert (mixed[:, :2] == 1).all()


def test_interval_covers_a_known_mean():
    # Ratio of sums over cases; the truth 0.5 should be inside about 19 of 20 times.
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        sums = np.stack([rng.random(40), np.ones(40)], axis=-1)
        low, high = metrics.bootstrap_interval(
            sums, lambda s: s[:, 0] / s[:, 1], num_resamples=200, seed=trial
        )
        inside += low <= 0.5 <= high
    assert 176 <= inside <= 199


def test_same_seed_same_interval():
    def interval(seed):
        return metrics.bootstrap_interval(
            STATISTICS, metrics.roc_auc_from_counts, num_resamples=40, seed=seed
        )

    assert interval(0) == interval(0)
    assert interval(0) != interval(1)


def test_undefined_resamples_are_left_out():
    one = STATISTICS.copy()
    one[1:, :, 1] = 0  # positives in a single case, which a third of the resamples miss
    found = metrics.bootstrap_interval(one, metrics.average_precision_from_counts, seed=0)
    assert np.isfinite(found).all()
    one[..., 1] = 0
    found = metrics.bootstrap_interval(one, metrics.average_precision_from_counts, seed=0)
    assert np.isnan(found).all()


def test_pixels_are_refused_as_images():
    with pytest.raises(InputError, match="bootstrap_interval"):
        metrics.image_bootstrap_interval(
            np.zeros((2, 2)), np.zeros((2, 2)), metrics.roc_auc_from_counts, seed=0
        )
