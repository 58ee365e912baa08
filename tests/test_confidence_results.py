"""Maps of made-up cases in, the numbers under `confidence` out, against scikit-learn and loops."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import ndimage
from scipy.special import expit, logit
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from caal_jax import confidence_results as results
from caal_jax import metrics
from caal_jax.case_statistics import CaseStatistics, case_statistics
from caal_jax.confidence.calibration import Calibration, calibration_sums
from caal_jax.data import Case, Geometry
from caal_jax.summarise import summarise
from caal_jax.train import held_out_confidence

LN2 = np.log(2)
CONFIG = SimpleNamespace(num_resamples=20, seed=0)


def entropy(p):
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


def made_case(number):
    """A case with a square lesion (even numbers) and three samples that see it dimly."""
    rng = np.random.default_rng(number)
    mask = np.zeros((30, 24), bool)
    if number % 2 == 0:
        mask[8:18, 6:15] = True
    z = rng.normal(-3, 0.8, mask.shape) + 4 * mask
    samples = expit(z + rng.normal(0, 1 + 2 * mask, (3, *mask.shape)))
    mean = samples.mean(0)
    aleatoric = entropy(samples).mean(0)
    score = float(np.sort(mean.ravel())[-7:].mean())
    prediction = SimpleNamespace(
        anomaly=mean.astype(np.float32),
        epistemic=(entropy(mean) - aleatoric).astype(np.float32),
        aleatoric=aleatoric.astype(np.float32),
        std=samples.std(0).astype(np.float32),
        foreground=np.ones(mask.shape, bool),
        score=score,
        score_std=rng.uniform(0, 0.2),
        uncertainty={"epistemic_top": rng.random(), "aleatoric_top": rng.random()},
        probability=score,
        p_value=0.5,
        exceeds=number % 3 > 0,
        verdict="abstain" if number % 5 == 0 else "abnormal" if number % 3 else "normal",
    )
    case = Case(
        case_id=f"case {number}",
        image=np.zeros((*mask.shape, 1)),
        geometry=Geometry(spacing_mm=(0.5, 2.0)),
        mask=mask,
        kind="lesion" if mask.any() else "normal",
    )
    return case, prediction


MADE = [made_case(number) for number in range(12)]


@pytest.fixture(scope="module")
def cases():
    return [case_statistics(case, prediction, {}) for case, prediction in MADE]


@pytest.fixture(scope="module")
def found(cases):
    return summarise(CONFIG, cases)[0]


def pooled(of):
    return np.concatenate([np.ravel(of(case, prediction)) for case, prediction in MADE])


TRUTH = pooled(lambda case, _: case.mask)
MEAN = pooled(lambda _, prediction: prediction.anomaly).astype(float)
WRONG = (MEAN >= 0.5) != TRUTH
MAPS = {
    "entropy": entropy(MEAN),
    "probability": MEAN,
    "epistemic": pooled(lambda _, prediction: prediction.epistemic),
    "aleatoric": pooled(lambda _, prediction: prediction.aleatoric),
    "std": pooled(lambda _, prediction: prediction.std),
}
PATCHES = sum(
    metrics.patch_counts(
        (one.anomaly >= 0.5) != case.mask, entropy(np.float64(one.anomaly)), threshold=LN2 / 2
    )
    for case, one in MADE
)


@pytest.mark.parametrize("name", MAPS)
def test_every_uncertainty_is_judged_by_the_pixels_it_finds(found, name):
    row, uncertainty = found["confidence"]["by_uncertainty"][name], MAPS[name]
    wanted = {
        "error_auroc": roc_auc_score(WRONG, uncertainty),
        "error_ap": average_precision_score(WRONG, uncertainty),
        "aurc": metrics.aurc(WRONG.astype(float), uncertainty),
        "excess_aurc": metrics.excess_aurc(WRONG.astype(float), uncertainty),
    }
    for key, value in wanted.items():
        assert_allclose(row[key], value, atol=5e-3, err_msg=key)
    per_image, correlations = [], []
    for case, prediction in MADE:
        wrong = (prediction.anomaly >= 0.5) != case.mask
        own = {"entropy": prediction.epistemic + prediction.aleatoric}.get(name)
        own = (
            getattr(prediction, {"probability": "anomaly"}.get(name, name)) if own is None else own
        )
        error = np.abs(prediction.anomaly - case.mask)
        correlations.append(spearmanr(error.ravel(), own.ravel()).statistic)
        if wrong.any() and not wrong.all():
            per_image.append(roc_auc_score(wrong.ravel(), own.ravel()))
    assert_allclose(row["error_auroc_per_image"], np.mean(per_image), atol=2e-3)
    assert_allclose(row["error_correlation"], np.mean(correlations), rtol=1e-6)
    assert 0 < row["num_images_error_auroc"] == len(per_image) < len(MADE)
    assert row["num_images_error_correlation"] == len(MADE)
    if name != "entropy":
        plain = roc_auc_score(WRONG, MAPS["entropy"])
        assert_allclose(row["gain"], wanted["error_auroc"] - plain, atol=2e-3)
        assert row["gain_ci95"][0] <= row["gain"] <= row["gain_ci95"][1]


def test_pixels_are_calibrated_as_the_exact_metrics_say(found):
    parts = metrics.brier_decomposition(MEAN, TRUTH)
    wanted = {
        "ece": metrics.expected_calibration_error(MEAN, TRUTH),
        "ece_equal_mass": metrics.expected_calibration_error(MEAN, TRUTH, equal_mass=True),
        "ece_decision": metrics.decision_calibration_error(MEAN, TRUTH),
        "ece_lesion": 1 - MEAN[TRUTH].mean(),
        "max_calibration_error": metrics.maximum_calibration_error(MEAN, TRUTH),
        "rms_calibration_error": metrics.rms_calibration_error(MEAN, TRUTH, debiased=True),
        "brier": metrics.brier_score(MEAN, TRUTH),
        "brier_reliability": parts.reliability,
        "brier_resolution": parts.resolution,
        "brier_uncertainty": parts.uncertainty,
        "nll": metrics.negative_log_likelihood(MEAN, TRUTH),
        "risk_at_coverage_80": metrics.risk_at_coverage(WRONG.astype(float), MAPS["entropy"], 0.8),
        "risk_at_coverage_90": metrics.risk_at_coverage(WRONG.astype(float), MAPS["entropy"], 0.9),
        "patch_pavpu": metrics.pavpu(PATCHES),
        "patch_accurate_given_certain": metrics.accurate_given_certain(PATCHES),
        "patch_uncertain_given_wrong": metrics.uncertain_given_wrong(PATCHES),
        "risk_at_coverage_95": metrics.risk_at_coverage(WRONG.astype(float), MAPS["entropy"], 0.95),
    }
    for name, value in wanted.items():
        assert_allclose(found["confidence"][name], value, rtol=0.02, atol=1e-4, err_msg=name)


def test_both_ends_of_an_uncertainty_are_told_apart():
    uncertainty = LN2 * np.array([0, 1e-6, 1e-5, 1e-4, 0.1, 0.5, 0.9, 0.999, 0.9999, 1 + 1e-7])
    scaled = results.risk_scale(uncertainty, LN2)
    assert np.diff(scaled).min() > 0.03
    assert_allclose(scaled[[0, 5, -1]], [0, 0.5, 1], atol=1e-9)


def test_images(found, cases):
    image = found["confidence"]["image"]
    labels = np.array([case.mask.any() for case, _ in MADE])
    scores = np.array([prediction.score for _, prediction in MADE])
    wrong = (np.arange(12) % 3 > 0) != labels
    assert 0 < wrong.sum() < len(wrong)
    assert_allclose(image["brier"], np.mean((scores - labels) ** 2))
    nll = np.mean(-np.log(np.where(labels, scores, 1 - scores)))
    assert_allclose(image["nll"], nll)
    assert_allclose(image["error_rate"], wrong.mean())
    assert_allclose(image["false_positive_rate"], wrong[~labels].mean())
    abstained = np.array([prediction.verdict == "abstain" for _, prediction in MADE])
    assert_allclose(image["abstained"], abstained.mean())
    assert_allclose(image["error_rate_decided"], wrong[~abstained].mean())
    assert image["brier_ci95"][0] < image["brier"] < image["brier_ci95"][1]
    want = metrics.expected_calibration_error(scores, labels, 5, equal_mass=True)
    assert_allclose(image["ece"], want)
    stds = [prediction.score_std for _, prediction in MADE]
    by_name = image["by_uncertainty"]
    assert_allclose(by_name["score_std"]["error_auroc"], roc_auc_score(wrong, stds))
    plain = entropy(scores)
    assert_allclose(by_name["entropy_of_probability"]["error_auroc"], roc_auc_score(wrong, plain))
    errors, top = wrong.astype(float), [case.uncertainty["epistemic_top"] for case in cases]
    wanted = {
        "aurc": metrics.aurc(errors, top),
        "excess_aurc": metrics.excess_aurc(errors, top),
        # Of 12 images: the surest 10, 11 and 12.
        "risk_at_coverage_80": np.mean(errors[np.argsort(top)[:10]]),
        "risk_at_coverage_90": np.mean(errors[np.argsort(top)[:11]]),
        "risk_at_coverage_95": np.mean(errors),
    }
    for name, value in wanted.items():
        assert_allclose(by_name["epistemic_top"][name], value, err_msg=name)


def test_regions(found, cases):
    region = found["confidence"]["region"]
    own = [one for case in cases for one in case.found_regions]
    assert region["num_regions"] == len(own) > 12
    hit = np.array([one["share_of_truth"] > 0 for one in own])
    assert_allclose(region["precision"], hit.mean())
    epistemic = [one["epistemic"] for one in own]
    assert_allclose(region["error_auroc_epistemic"], roc_auc_score(~hit, epistemic))
    entropy_of = [one["epistemic"] + one["aleatoric"] for one in own]
    assert_allclose(region["error_auroc_entropy"], roc_auc_score(~hit, entropy_of))
    stds = [one["std"] for one in own]
    assert_allclose(region["error_auroc_std"], roc_auc_score(~hit, stds))
    probability = np.array([one["probability"] for one in own])
    assert_allclose(region["error_auroc_probability"], roc_auc_score(~hit, 1 - probability))
    rows = results.region_rows("x", cases[0].found_regions)
    first = dict(zip(results.REGION_COLUMNS, rows[0], strict=True))
    assert (first["case_id"], first["region"]) == ("x", 1)
    assert first["size_mm"] == first["size_px"] == own[0]["size_px"] > 30
    found_at = MADE[0][1].anomaly >= 0.5
    largest = ndimage.label(found_at, np.ones((3, 3)))[0]
    largest = largest == np.argmax(np.bincount(largest[found_at]))
    assert_allclose(first["std"], MADE[0][1].std[largest].mean(), rtol=1e-6)
    assert_allclose(first["entropy"], first["epistemic"] + first["aleatoric"])
    assert first["box_px"].count(":") == 2
    assert len(rows) == len(cases[0].found_regions)


def test_a_region_that_touches_the_truth_is_right():
    regions = [
        {"share_of_truth": share, "probability": 0.7}
        | dict.fromkeys(("epistemic", "aleatoric", "entropy", "std"), u)
        for share, u in ((0.2, 0.1), (0.9, 0.2), (0.0, 0.3))
    ]
    found = results.region_confidence([SimpleNamespace(found_regions=regions)])
    assert_allclose(found["precision"], 2 / 3)
    assert_allclose(found["ece"], 0.7 - 2 / 3)
    assert found["error_auroc_epistemic"] == 1
    assert found["error_auroc_std"] == 1
    assert found["error_auroc_probability"] == 0.5
    # As an earlier version kept it.
    del regions[0]["std"]
    assert "error_auroc_std" not in results.region_confidence(
        [SimpleNamespace(found_regions=regions)]
    )


def test_what_is_kept_survives_the_disk(tmp_path, cases):
    cases[0].save(tmp_path / "case.npz")
    again = CaseStatistics.load(tmp_path / "case.npz")
    assert again.found_regions == cases[0].found_regions
    assert again.uncertainty == cases[0].uncertainty
    for name in results.UNCERTAINTIES:
        assert (again.risks[name] == cases[0].risks[name]).all()


def test_undefined_numbers_have_a_reason():
    # One healthy case, all right: nothing to find, and nothing found.
    case, prediction = made_case(1)
    prediction.anomaly = np.minimum(prediction.anomaly, 0.4)
    prediction.exceeds, prediction.verdict = False, "normal"
    found = summarise(CONFIG, [case_statistics(case, prediction, {})])[0]
    for path in (
        "confidence.by_uncertainty.std.error_auroc",
        "confidence.image.by_uncertainty.score_std.error_auroc",
        "confidence.region.precision",
    ):
        part = found
        for name in path.split("."):
            part = part[name]
        assert part is None
        assert found["undefined"][path]
    assert found["undefined"]["confidence.region.precision"] == "no region was found"
    nothing = summarise(CONFIG, [])[0]
    assert "image" not in nothing["confidence"]


def test_held_out_numbers_are_those_of_the_calibrated_pixels():
    rng = np.random.default_rng(0)
    p = expit(rng.normal(-2, 1.5, 50_000))
    y = (rng.random(p.size) < expit(logit(p) / 2)).astype(float)
    spread = metrics.SpreadHistogram().update(
        p, np.full(p.size, 0.2), p + rng.normal(0, 0.2, p.size)
    )
    found = held_out_confidence(
        calibration_sums(p, y), Calibration(2.0, 0.0), spread, [0.1, 0.2, 0.3], [0.25, 0.4]
    )
    calibrated = expit(logit(p) / 2)
    for name, values in (("", calibrated), ("_uncalibrated", p)):
        want = metrics.expected_calibration_error(values, y)
        assert_allclose(found[f"ece{name}"], want, atol=2e-3)
        want = metrics.negative_log_likelihood(values, y)
        assert_allclose(found[f"nll{name}"], want, rtol=1e-3)
    assert found["ece"] < 0.01 < found["ece_uncalibrated"]
    assert_allclose(found["std_coverage_90"], 0.9, atol=0.01)
    assert_allclose(found["std_z_score_std"], 1, atol=0.02)
    assert_allclose(found["image_auroc"], 5 / 6)
    # Without samples there is no std to judge.
    plain = held_out_confidence(
        calibration_sums(p, y), Calibration(2.0, 0.0), metrics.SpreadHistogram(), [0.1], [0.2]
    )
    assert not any(name.startswith("std") for name in plain)


def test_slices_are_scored_by_the_share_that_scores_the_image():
    case, prediction = MADE[0]
    names = ("anomaly", "std", "epistemic", "aleatoric")
    maps = {name: np.stack([getattr(prediction, name)] * 2) for name in names}
    maps["anomaly"][1] /= 2
    prediction = SimpleNamespace(**{**vars(prediction), **maps})
    prediction.foreground = np.ones(maps["anomaly"].shape, bool)
    mask = np.stack([case.mask, np.zeros_like(case.mask)])
    volume = Case("v", np.zeros((*mask.shape, 1)), Geometry((1.0, 0.5, 2.0), 0), mask)
    found = case_statistics(volume, prediction, {}, score_fraction=0.5).slices
    half = mask[0].size // 2
    expected = [np.sort(one.ravel())[-half:].mean() for one in maps["anomaly"]]
    assert_allclose(found, np.stack([expected, [1, 0]], axis=1), rtol=1e-6)
