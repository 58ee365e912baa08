"""Sections of the results about objects, sizes, images and patients, from made-up cases."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from caal_jax import breakdown, metrics
from caal_jax.case_statistics import CaseStatistics, add_ranking
from caal_jax.summarise import summarise

RNG = np.random.default_rng(0)
CONFIG = SimpleNamespace(num_resamples=60, seed=0)


def made_up(number, size):
    """A case of 64 x 64 with a square anomaly of `size`, and a map that is a little right."""
    mask = np.zeros((64, 64), bool)
    mask[20 : 20 + size, 30 : 30 + size] = True
    scores = np.clip(0.15 * mask + 0.85 * RNG.beta(2, 4, mask.shape), 0, 1)
    case = CaseStatistics(
        case_id=f"case{number}",
        patient=f"patient{number // 2}",
        kind="square" if size else "normal",
        label=int(size > 0),
        score=float(scores.max()),
        has_mask=True,
        image_scores=metrics.image_scores(scores),
    )
    add_ranking(case, scores, mask)
    return case, scores, mask


MADE = [made_up(number, size) for number, size in enumerate([0, 2, 5, 0, 30, 0, 1, 0])]
CASES, MAPS, MASKS = ([one[i] for one in MADE] for i in range(3))


@pytest.fixture(scope="module")
def summary():
    return summarise(CONFIG, CASES)


def test_everything_is_plain_json(summary):
    results, curves = summary
    json.dumps(results, allow_nan=False)
    json.dumps(curves, allow_nan=False)


def test_objects(summary):
    found = summary[0]["object"]
    assert_allclose(found["froc"], metrics.froc(MAPS, MASKS), atol=0.02)
    assert found["froc_ci95"][0] <= found["froc"] <= found["froc_ci95"][1]
    at_one = metrics.froc(MAPS, MASKS, rates=[1])
    assert_allclose(found["sensitivity_at_1_alarm"], at_one, atol=0.26)
    hits = [metrics.pointing_game(*case) for case in zip(MAPS, MASKS, strict=True)]
    assert_allclose(found["pointing_game"], np.nanmean(hits))
    assert not any("box" in name for name in found)


def test_boxes_are_found_where_the_truth_is_boxes():
    mask, map_ = np.zeros((20, 30), bool), np.zeros((20, 30))
    mask[2:8, 3:13] = mask[12:16, 20:24] = True
    map_[2:8, 3:8] = 0.5  # half of the first box; beside the second one
    map_[17:19, 20:24] = 0.9
    boxed, empty = (breakdown.boxes_of(map_, one) for one in (mask, mask & False))
    assert_allclose(boxed, [1, 1, 1, 2])
    assert_allclose(breakdown.boxes_of(np.where(map_ < 0.9, 0, map_), mask), [0, 0, 0, 2])
    assert empty is None
    assert breakdown.boxes_of(map_[None], mask[None]) is None
    mask[7, 12] = False
    assert breakdown.boxes_of(map_, mask) is None

    cases = [replace(case, boxes=boxed if case.label else None) for case in CASES]
    found = summarise(CONFIG, cases)[0]["object"]
    assert [found[f"box_recall_{iou}%"] for iou in (10, 30, 50)] == [0.5, 0.5, 0.5]
    assert found["box_recall_10%_ci95"] == [0.5, 0.5]


def test_means_over_images_and_patients(summary):
    pixel = summary[0]["pixel"]
    abnormal = [case for case in zip(MAPS, MASKS, strict=True) if case[1].any()]
    of_images = [metrics.average_precision(*case) for case in abnormal]
    assert_allclose(pixel["ap_per_image"], np.mean(of_images), atol=0.02)
    pairs = zip(np.split(np.stack(MAPS), 4), np.split(np.stack(MASKS), 4), strict=True)
    of_patients = [metrics.average_precision(*pair) for pair in pairs]
    assert_allclose(pixel["ap_per_patient"], np.nanmean(of_patients), atol=0.02)
    threshold = metrics.best_dice_threshold(np.stack(MAPS), np.stack(MASKS))
    dice = metrics.image_dice(MAPS, MASKS, threshold)
    assert_allclose(pixel["dice_per_image"], dice.mean(), atol=0.02)
    assert_allclose(
        pixel["dice_at_5_fpr"], metrics.dice_at_fpr(np.stack(MAPS), np.stack(MASKS)), atol=0.01
    )
    for name in ("ap_per_image", "ap_per_patient", "dice_per_image"):
        low, high = pixel[f"{name}_ci95"]
        assert low <= pixel[name] <= high
    # 4 normal images of 4096 pixels cannot show a rate of 1e-5.
    assert pixel["aupimo"] is None
    assert "100,000" in summary[0]["undefined"]["pixel.aupimo"]


def test_aupimo_where_it_is_defined():
    def case(number, abnormal):
        counts = np.zeros((64, 3))
        counts[:40, 0] = 1e5
        counts[40, 0] = 1
        counts[50, 1] = 7 * abnormal
        return SimpleNamespace(rank=counts, patient=str(number))

    found = breakdown.pixel_means([case(0, 0), case(1, 1), case(2, 1)], num_resamples=9, seed=0)
    assert found["aupimo"] == 1
    assert found["aupimo_ci95"] == [1, 1]


def test_sizes(summary):
    results = summary[0]
    sizes = {name: row["num_cases"] for name, row in results["by_size"].items()}
    assert sizes == {"<= 0.1 %": 2, "0.1 to 1 %": 1, "> 10 %": 1}
    own = [(MAPS[i], MASKS[i]) for i in (0, 3, 5, 7, 4)]
    want = metrics.average_precision(*(np.stack(part) for part in zip(*own, strict=True)))
    assert_allclose(results["by_size"]["> 10 %"]["pixel_ap"], want, atol=0.02)


def test_an_abnormal_case_with_an_empty_mask_has_no_size():
    assert breakdown.size_of(replace(CASES[0], label=1)) is None
    assert breakdown.size_of(replace(CASES[1], label=0)) is None
    assert breakdown.size_of(CASES[1]) == "<= 0.1 %"


def test_lesion_sizes():
    found = metrics.Detections(
        np.array([0.9, 0.4, -np.inf, 0.1]), np.array([5, 10, 200, 9]), np.array([0.3, 0.2])
    )
    counts = metrics.froc_counts(found)
    lesions = np.stack([found.lesion_sizes, np.maximum(found.lesion_scores, -1)], axis=1)
    case = SimpleNamespace(froc=counts, lesions=lesions)
    # At one alarm per case, that of 0.3, the lesion of 0.1 is not found.
    assert breakdown.by_lesion_size([case]) == {
        "< 10 px": {"num_lesions": 2, "sensitivity": 0.5},
        "10 to 99 px": {"num_lesions": 1, "sensitivity": 1.0},
        "100 to 999 px": {"num_lesions": 1, "sensitivity": 0.0},
    }
    assert breakdown.by_lesion_size([]) == {}


def test_patients(summary):
    # Patients 0 to 3 have the sizes (0, 2), (5, 0), (30, 0) and (1, 0): all abnormal.
    assert "patient" not in summary[0]
    cases = [*CASES, *(replace(case, patient="healthy", label=0) for case in CASES[:2])]
    results, _ = summarise(CONFIG, cases)
    scores = [max(case.score for case in cases[i : i + 2]) for i in range(0, 10, 2)]
    want = metrics.roc_auc(scores, [1, 1, 1, 1, 0])
    assert results["patient"]["num_patients"] == 5
    assert results["patient"]["auroc"] == want
    # Independent images are what DeLong's interval needs.
    assert "auroc_delong_ci95" not in results["image"]
    alone = [replace(case, patient=case.case_id) for case in CASES]
    found, _ = summarise(CONFIG, alone)
    labels = [case.label for case in CASES]
    want = metrics.delong_interval([case.score for case in CASES], labels)
    assert found["image"]["auroc_delong_ci95"] == [None if np.isnan(x) else x for x in want]


def test_rows_have_intervals_or_reasons(summary):
    for table in ("by_kind", "by_size"):
        for row in summary[0][table].values():
            for name in ("pixel_ap", "image_auroc"):
                low, high = row[f"{name}_ci95"]
                assert low <= row[name] <= high
    # One kind only: its row has what the whole has.
    results = summary[0]
    row = results["by_kind"]["square"]
    assert row["pixel_aupro"] == results["pixel"]["aupro"]
    assert row["sensitivity_at_1_alarm"] == results["object"]["sensitivity_at_1_alarm"]
    abnormal = [case for case in CASES if case.label]
    results, _ = summarise(CONFIG, [replace(abnormal[0], has_mask=False), *abnormal[1:]])
    assert results["by_kind"]["square"]["image_auroc"] is None
    assert "no normal" in results["undefined"]["by_kind.square.image_auroc"]
    assert "mask" in results["undefined"]["by_kind.square.pixel_ap"]


def test_slices_are_scored_with_intervals():
    truth = RNG.random((8, 5)) < 0.4
    scores = np.round(RNG.normal(truth), 1)
    cases = [
        replace(case, slices=np.stack([s, t], axis=1))
        for case, s, t in zip(CASES, scores, truth, strict=True)
    ]
    found = summarise(CONFIG, cases)[0]["slice"]
    assert_allclose(found["auroc"], metrics.roc_auc(scores, truth))
    want = metrics.image_bootstrap_interval(
        scores.ravel(),
        truth.ravel(),
        metrics.roc_auc_from_counts,
        clusters=np.repeat([case.patient for case in CASES], 5),
        num_resamples=60,
        seed=0,
    )
    assert found["auroc_ci95"] == [*want]


def test_image_scores_are_compared(summary):
    found = summary[0]["by_score"]
    assert {*found} == {*metrics.IMAGE_SCORES}
    labels = [case.label for case in CASES]
    assert_allclose(
        found["largest"]["image_auroc"], metrics.roc_auc([m.max() for m in MAPS], labels)
    )
    assert breakdown.by_score([case for case in CASES if case.label]) == {}


def test_froc_curve_and_its_band(summary):
    curve = summary[1]["froc"]
    assert curve["false_positives"][0] == curve["sensitivity"][0] == 0
    assert (np.diff(curve["false_positives"]) >= 0).all()
    assert (np.diff(curve["sensitivity"]) >= 0).all()
    counts = np.sum([case.froc for case in CASES], axis=0)
    want = [metrics.froc_from_counts(counts, rates=[rate]) for rate in breakdown.FROC_GRID]
    assert_allclose(breakdown.sensitivity_at_alarms(counts[None])[0], want)
    assert len(np.unique(want)) > 1
    for rate, low, high in zip(*(curve["band"][x] for x in ("x", "low", "high")), strict=True):
        reached = metrics.froc_from_counts(counts, rates=[rate])
        below = np.array(curve["false_positives"]) <= rate
        assert_allclose(np.array(curve["sensitivity"])[below].max(), reached)
        assert low <= reached <= high


def test_without_lesions_the_reasons_are_told():
    results, curves = summarise(CONFIG, [case for case in CASES if not case.label])
    assert "froc" not in curves
    for name in ("object.froc", "object.pointing_game", "pixel.ap_per_image", "pixel.aupimo"):
        section, _, key = name.partition(".")
        assert results[section][key] is None
        assert results["undefined"][name]
    assert results["by_size"] == results["by_lesion_size"] == results["by_score"] == {}
