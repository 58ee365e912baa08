"""The table of a study on made-up statistics, for which the answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import average_precision_score, roc_auc_score

from caal_jax import metrics
from caal_jax.study.grid import Variant
from caal_jax.study.results import (
    Draws,
    holm,
    image_auroc,
    mean_and_interval,
    paired,
    pixel_ap,
    resampling_of,
    table_rows,
)

RNG = np.random.default_rng(1)
MASKS = RNG.random((12, 40)) < 0.3
MASKS[:4] = False


def run(shift):
    """`CaseStatistics`, as far as a table needs them, of maps that grow with the truth by shift;
    and those maps."""
    maps = np.round(np.clip(RNG.normal(0.4, 0.1, MASKS.shape) + shift * MASKS, 0, 1), 2)
    cases = [
        SimpleNamespace(
            patient=f"p{number // 2}",
            label=int(mask.any()),
            has_mask=number != 5,
            score=float(one.max()),
            rank=metrics.ScoreHistogram().update(one, mask).statistics,
        )
        for number, (one, mask) in enumerate(zip(maps, MASKS, strict=True))
    ]
    return cases, maps


@pytest.fixture(scope="module")
def runs():
    return {seed: run(0.1) for seed in (0, 1, 2)}


def test_values_are_those_of_scikit_learn(runs):
    cases = {seed: one for seed, (one, _) in runs.items()}
    resampling = resampling_of(cases[0], 40)
    masked = np.arange(12) != 5
    ap = [
        average_precision_score(MASKS[masked].ravel(), m[masked].ravel()) for _, m in runs.values()
    ]
    assert_allclose(pixel_ap(cases, resampling).value, ap, atol=2e-3)
    labels = MASKS.any(1)
    auroc = [roc_auc_score(labels, maps.max(1)) for _, maps in runs.values()]
    assert_allclose(image_auroc(cases, resampling).value, auroc, atol=1e-9)
    value, low, high = mean_and_interval(pixel_ap(cases, resampling), resampling)
    assert_allclose(value, np.mean(ap), atol=2e-3)
    assert low < value < high


def test_an_interval_covers_patients_and_seeds():
    resampling = resampling_of(
        [SimpleNamespace(patient=str(i), label=i % 2) for i in range(9)], 4000
    )
    of_seeds = np.array([0.4, 0.5, 0.6])
    flat = Draws((0, 1, 2), of_seeds, np.repeat(of_seeds[:, None], 4000, axis=1))
    _, low, high = mean_and_interval(flat, resampling)
    # One draw in 27, so more than 2.5 %, takes the lowest seed three times.
    assert_allclose([low, high], [0.4, 0.6], atol=1e-9)
    same = Draws((0,), np.array([0.5]), np.full((1, 4000), 0.5))
    assert mean_and_interval(same, resampling) == (0.5, 0.5, 0.5)


def test_differences_pair_seeds_and_patients():
    resampling = resampling_of(
        [SimpleNamespace(patient=str(i), label=i % 2) for i in range(9)], 999
    )
    drawn = RNG.normal(0.5, 0.2, (3, 999))
    first = Draws((0, 1, 2), drawn[:, 0] + 0.1, drawn + 0.1)
    second = Draws((2, 0, 1), drawn[[2, 0, 1], 0], drawn[[2, 0, 1]])
    assert_allclose(paired(first, second, resampling), [0.1, 0.1, 0.1, 2 / 1000], atol=1e-9)
    bar = Draws((None,), np.array([0.2]), np.full((1, 999), 0.2))
    assert_allclose(paired(first, bar, resampling).value, first.value.mean() - 0.2)
    other = Draws((7,), np.array([0.2]), np.full((1, 999), 0.2))
    assert np.isnan(paired(first, other, resampling)).all()


def test_holm_as_worked_by_hand():
    assert_allclose(holm([0.01, 0.04, np.nan, 0.03, 0.005]), [0.03, 0.06, np.nan, 0.06, 0.02])
    assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])


def test_the_table_finds_what_is_better_and_what_is_not():
    plain, better, alike = (Variant("fpi", way, "unet", "single") for way in ("none", "a", "b"))
    variants = {
        plain: {seed: run(0.1)[0] for seed in (0, 1)},
        better: {seed: run(0.4)[0] for seed in (0, 1)},
        alike: {seed: run(0.1)[0] for seed in (0, 1)},
    }
    for runs in variants.values():
        for number, case in enumerate(case for cases in runs.values() for case in cases):
            case.patient = str(number % 12)  # twelve patients can show something
    rows = table_rows(variants, {"raw intensity": {None: run(0.0)[0]}}, 400)
    rows = {row["name"]: row for row in rows}
    assert rows["raw intensity"]["seeds"] == []
    assert "against" not in rows["raw intensity"]
    assert rows[plain.label]["seeds"] == [0, 1]
    assert set(rows[plain.label]["against"]) == {"raw intensity"}
    found = rows[better.label]["against"][plain.label]
    assert found["ci95"][0] > 0.1
    assert found["p_holm"] >= found["p_value"]
    assert found["p_holm"] < 0.05
    assert rows[alike.label]["against"][plain.label]["p_holm"] > 0.05


def test_few_patients_promise_little():
    plain, better = (Variant("fpi", way, "unet", "single") for way in ("none", "a"))
    variants = {plain: {0: run(0.1)[0]}, better: {0: run(0.4)[0]}}
    for runs in variants.values():
        for number, case in enumerate(runs[0]):
            case.patient = str(number // 2 % 4)
    rows = {row["name"]: row for row in table_rows(variants, {}, 400)}
    assert rows[better.label]["against"][plain.label]["p_value"] == 1 / 8
