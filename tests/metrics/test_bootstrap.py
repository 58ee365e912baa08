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


OTHER_SCORES = np.round(IMAGE_SCORES + RNG.normal(0, 0.7, 24), 1)
OTHER = np.stack(
    [metrics.ScoreHistogram(64).update(np.sqrt(s), y).statistics for s, y in CASES]
)  # an order of scores that bins change


def plain_p_value(values):
    rarer = min((values <= 0).sum(), (values >= 0).sum())
    return min(1, 2 * (rarer + 1) / (len(values) + 1))


def test_paired_interval_equals_a_plain_loop_over_resamples():
    metric = metrics.average_precision_from_counts
    weights = metrics.resample_weights(24, num_resamples=100, seed=3, strata=STRATA)
    values = []
    for drawn in weights:
        drawn = np.repeat(np.arange(24), drawn.astype(int))
        values.append(metric(STATISTICS[drawn].sum(0)) - metric(OTHER[drawn].sum(0)))
    found = metrics.paired_bootstrap(
        STATISTICS, OTHER, metric, num_resamples=100, seed=3, strata=STRATA
    )
    assert_allclose(found.value, metric(STATISTICS.sum(0)) - metric(OTHER.sum(0)), rtol=1e-12)
    assert_allclose([found.low, found.high], percentiles(values), rtol=1e-9)
    assert_allclose(found.p_value, plain_p_value(np.array(values)))


def test_paired_image_interval_equals_a_plain_loop_over_resamples():
    weights = metrics.resample_weights(24, num_resamples=100, seed=5, strata=STRATA)
    values = []
    for drawn in weights.astype(int):
        drawn = np.repeat(np.arange(24), drawn)
        of_runs = [metrics.roc_auc(s[drawn], STRATA[drawn]) for s in (IMAGE_SCORES, OTHER_SCORES)]
        values.append(of_runs[0] - of_runs[1])
    found = metrics.paired_image_bootstrap(
        IMAGE_SCORES, OTHER_SCORES, STRATA, metrics.roc_auc_from_counts, num_resamples=100, seed=5
    )
    want = metrics.roc_auc(IMAGE_SCORES, STRATA) - metrics.roc_auc(OTHER_SCORES, STRATA)
    assert_allclose(found.value, want)
    assert_allclose([found.low, found.high], percentiles(values), atol=1e-12)
    assert_allclose(found.p_value, plain_p_value(np.array(values)))
    assert found.p_value < 1


def test_pairing_sees_what_two_intervals_hide():
    better = IMAGE_SCORES + 0.4 * STRATA
    alone = [
        metrics.image_bootstrap_interval(s, STRATA, metrics.roc_auc_from_counts, seed=0)
        for s in (better, IMAGE_SCORES)
    ]
    paired = metrics.paired_image_bootstrap(
        better, IMAGE_SCORES, STRATA, metrics.roc_auc_from_counts, seed=0
    )
    assert alone[0][0] < alone[1][1]
    assert paired.low > 0
    assert paired.p_value < 0.05


def test_a_run_does_not_differ_from_itself():
    found = metrics.paired_bootstrap(
        STATISTICS, STATISTICS, metrics.roc_auc_from_counts, num_resamples=30, seed=0
    )
    assert found == metrics.Difference(0, 0, 0, 1)
    nothing = np.zeros((3, 8, 2))
    found = metrics.paired_bootstrap(
        nothing, nothing, metrics.roc_auc_from_counts, num_resamples=30, seed=0
    )
    assert np.isnan(found).all()
