"""Everything under `confidence` in metrics.json: what is kept of a case for it, and the numbers."""

import functools

import numpy as np
from scipy.special import entr, logit

from caal_jax import metrics
from caal_jax.confidence.summaries import find_regions
from caal_jax.metrics.inputs import chunks

LN2 = float(np.log(2))
# The largest value of each uncertainty of a pixel. The entropy of the mean and the probability
# itself are the trivial ones: a single plain network has them too.
UNCERTAINTIES = {"entropy": LN2, "probability": 1.0, "epistemic": LN2, "aleatoric": LN2, "std": 0.5}
REGION_COLUMNS = (
    *("case_id", "region", "size_px", "size_mm", "centre_px", "box_px"),
    *("probability", "peak", "epistemic", "aleatoric", "entropy", "std"),
)
RISK_BINS = 2048  # of `risk_scale`
COVERAGES = (80, 90, 95)  # percent kept
IMAGE_BINS = 5  # of equal mass: there are few images


def risk_scale(uncertainty, upper):
    """Uncertainty in [0, upper] to [0, 1], its order kept, with fine steps at both ends.

    Most pixels are nearly certain and most errors nearly undecided; equal bins would put each kind
    into one. Shares of `upper` below 1e-7, the rounding of an entropy, are not told apart.
    """
    floor = 1e-7
    share = np.clip(np.asarray(uncertainty, np.float64) / upper, floor, 1 - floor)
    return np.clip((1 - logit(share) / logit(floor)) / 2, 0.0, 1.0)


def _uncertainty_maps(prediction):
    return {
        "probability": prediction.anomaly,
        "epistemic": prediction.epistemic,
        "aleatoric": prediction.aleatoric,
        "std": prediction.std,
    }


def risks_of(prediction, wrong):
    """Errors by each uncertainty of a case: {name: `RiskHistogram.statistics`}.

    wrong: bool, of the shape of the prediction's maps.
    """
    maps = _uncertainty_maps(prediction)
    found = {name: metrics.RiskHistogram(RISK_BINS, upper=1.0) for name in UNCERTAINTIES}
    for errors, *values in chunks(wrong.ravel(), *(one.ravel() for one in maps.values())):
        part = dict(zip(maps, values, strict=True))
        part["entropy"] = part["epistemic"] + part["aleatoric"]
        for name, histogram in found.items():
            histogram.update(errors, risk_scale(part[name], UNCERTAINTIES[name]))
    return {name: histogram.statistics for name, histogram in found.items()}


def correlations_of(prediction, mask):
    """Spearman's correlation of |probability - truth| with each uncertainty of a case, by name."""
    maps = _uncertainty_maps(prediction)
    maps["entropy"] = maps["epistemic"] + maps["aleatoric"]
    error = np.abs(prediction.anomaly - mask)
    return {name: metrics.error_correlation(error, maps[name]) for name in UNCERTAINTIES}


def patches_of(prediction, wrong):
    """`metrics.patch_counts` by the predictive entropy; half of its largest value is uncertain."""
    entropy = prediction.epistemic + prediction.aleatoric
    return metrics.patch_counts(wrong, entropy, threshold=LN2 / 2)


def regions_of(prediction, mask, spacing_mm):
    """The regions of a prediction, tuples and plain numbers, each with its "share_of_truth"."""
    maps = {
        "epistemic": prediction.epistemic,
        "aleatoric": prediction.aleatoric,
        "std": prediction.std,
        "share_of_truth": mask,
    }
    found = find_regions(prediction.anomaly, maps, spacing_mm=spacing_mm)
    return tuple(_region_facts(region) for region in found)


def _region_facts(region):
    facts = region._asdict()
    means = facts.pop("means")
    # The predictive entropy is the sum of the other two, and so is its mean.
    return facts | means | {"entropy": means["epistemic"] + means["aleatoric"]}


def region_rows(case_id, regions):
    """Rows of REGION_COLUMNS for a table, from `Region`s or from `regions_of`."""
    rows = []
    for number, region in enumerate(regions, start=1):
        facts = region if isinstance(region, dict) else _region_facts(region)
        facts = facts | {
            "case_id": case_id,
            "region": number,
            "centre_px": " ".join(f"{place:.1f}" for place in facts["centre_px"]),
            "box_px": " ".join(f"{first}:{end}" for first, end in facts["box_px"]),
        }
        rows.append([facts[column] for column in REGION_COLUMNS])
    return rows


def _mean_loss(sums, column):
    return sums[..., column] / sums[..., 2]


def _brier_part(statistics, which):
    return metrics.brier_parts_from_statistics(statistics)[which]


# Of pixels, pooled: the field of `CaseStatistics` that is summed over cases, and the function of
# the sum. A pixel is wrong where `anomaly >= 1/2` differs from the mask.
POOLED = {
    "ece": ("calibrated", metrics.expected_calibration_error_from_statistics),
    "ece_equal_mass": (
        "calibrated",
        functools.partial(metrics.expected_calibration_error_from_statistics, equal_mass=True),
    ),
    "ece_lesion": ("calibrated", metrics.lesion_calibration_error_from_statistics),
    "brier": ("losses", functools.partial(_mean_loss, column=0)),
    "nll": ("losses", functools.partial(_mean_loss, column=1)),
    "aurc": ("risk", metrics.aurc_from_statistics),
    "excess_aurc": ("risk", metrics.excess_aurc_from_statistics),
    "error_auroc": ("risk", metrics.error_auroc_from_statistics),
    "aurc_epistemic": ("epistemic_risk", metrics.aurc_from_statistics),
    "error_auroc_epistemic": ("epistemic_risk", metrics.error_auroc_from_statistics),
}
# The same without intervals, each of which costs a second.
PLAIN = {
    "ece_decision": ("calibrated", metrics.decision_calibration_error_from_statistics),
    "max_calibration_error": ("calibrated", metrics.maximum_calibration_error_from_statistics),
    "rms_calibration_error": (
        "calibrated",
        functools.partial(metrics.rms_calibration_error_from_statistics, debiased=True),
    ),
    "brier_reliability": ("calibrated", functools.partial(_brier_part, which=0)),
    "brier_resolution": ("calibrated", functools.partial(_brier_part, which=1)),
    "brier_uncertainty": ("calibrated", functools.partial(_brier_part, which=2)),
    "patch_accurate_given_certain": ("patches", metrics.accurate_given_certain),
    "patch_uncertain_given_wrong": ("patches", metrics.uncertain_given_wrong),
    "patch_pavpu": ("patches", metrics.pavpu),
    **{
        f"risk_at_coverage_{percent}": (
            "risk",
            functools.partial(metrics.risk_at_coverage_from_statistics, coverage=percent / 100),
        )
        for percent in COVERAGES
    },
}


def further_confidence(cases, num_resamples, seed):
    """What `confidence` has besides POOLED: PLAIN, and parts "by_uncertainty", "image", "region".

    cases: `CaseStatistics`; num_resamples and seed: of the bootstrap over patients. Undefined
    numbers are None; `reasons` says why. What no case has is left out.
    """
    groups = {"num_resamples": num_resamples, "seed": seed}
    found = {}
    for name, (field, metric) in PLAIN.items():
        kept = [getattr(case, field) for case in cases if getattr(case, field) is not None]
        if kept:
            found[name] = number(metric(np.sum(kept, axis=0)))
    parts = {
        "by_uncertainty": by_uncertainty([case for case in cases if case.risks], groups),
        "image": image_confidence([c for c in cases if c.probability is not None], groups),
        "region": region_confidence([c for c in cases if c.found_regions is not None]),
    }
    return found | {name: part for name, part in parts.items() if part}


def reasons(parts, path="confidence"):
    """{path of a number: why it is None} for what `further_confidence` returns."""
    found = {}
    for name, value in parts.items():
        if isinstance(value, dict):
            found |= reasons(value, f"{path}.{name}")
        elif value is None and parts.get("num_regions") == 0:
            found[f"{path}.{name}"] = "no region was found"
        elif value is None:
            found[f"{path}.{name}"] = "it takes both errors and right answers, or both classes"
    return found


def by_uncertainty(cases, groups):
    """How well each uncertainty of UNCERTAINTIES finds wrong pixels: {name: numbers}.

    error_auroc_per_image: the mean over images that have both wrong and right pixels.
    error_correlation: Spearman's, of |probability - truth| with it, the mean over images where
    neither is constant. num_images_*: how many images these means are of.
    gain: error AUROC above that of the entropy, which needs neither samples nor members.
    """
    if not cases:
        return {}
    groups = groups | _strata(cases)
    plain = np.stack([case.risks["entropy"] for case in cases])
    found = {}
    for name in UNCERTAINTIES:
        risks = np.stack([case.risks[name] for case in cases])
        total = risks.sum(0)
        per_image = [metrics.error_auroc_from_statistics(one) for one in risks]
        correlations = [case.correlations[name] for case in cases]
        auroc, num_auroc = metrics.macro_mean(per_image)
        correlation, num_correlation = metrics.macro_mean(correlations)
        row = {
            "aurc": metrics.aurc_from_statistics(total),
            "excess_aurc": metrics.excess_aurc_from_statistics(total),
            "error_auroc": metrics.error_auroc_from_statistics(total),
            "error_ap": metrics.error_average_precision_from_statistics(total),
            "error_auroc_per_image": auroc,
            "error_correlation": correlation,
        }
        found[name] = {key: number(value) for key, value in row.items()}
        found[name]["num_images_error_auroc"] = num_auroc
        found[name]["num_images_error_correlation"] = num_correlation
        if name != "entropy":
            both = np.stack([risks, plain], axis=1)
            found[name] |= _with_interval("gain", both, _auroc_difference, groups)
    return found


def _auroc_difference(statistics):
    first, second = (metrics.error_auroc_from_statistics(statistics[..., i, :, :]) for i in (0, 1))
    return first - second


def image_confidence(cases, groups):
    """Calibration of the images' probabilities, and whether their uncertainty finds wrong ones.

    An image is wrong where its score is on the wrong side of the threshold, abstained on or not.
    false_positive_rate: of the normal images. error_rate_decided: of those without abstention.
    """
    if not cases:
        return {}
    groups = groups | _strata(cases)
    label = np.array([case.label for case in cases], bool)
    probability = np.array([case.probability for case in cases])
    wrong = np.array([case.exceeds for case in cases], bool) != label
    decided = np.array([case.verdict != "abstain" for case in cases])
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    ones = np.ones(len(cases))
    losses = {
        "brier": (probability - label) ** 2,
        "nll": -np.where(label, np.log(p), np.log1p(-p)),
        "error_rate": wrong.astype(float),
    }
    found = {
        "ece": number(
            metrics.expected_calibration_error(probability, label, IMAGE_BINS, equal_mass=True)
        )
    }
    for name, loss in losses.items():
        found |= _with_interval(name, np.stack([loss, ones], -1), _ratio, groups)
    found["false_positive_rate"] = _mean(wrong[~label])
    found["abstained"] = _mean(~decided)
    found["error_rate_decided"] = _mean(wrong[decided])
    uncertainties = {
        name: [case.uncertainty[name] for case in cases] for name in cases[0].uncertainty
    }
    uncertainties |= {
        "score_std": [case.score_std for case in cases],
        "entropy_of_probability": entr(p) + entr(1 - p),
    }
    found["by_uncertainty"] = {
        name: _image_selection(wrong.astype(float), values)
        for name, values in uncertainties.items()
    }
    return found


def _image_selection(errors, uncertainty):
    risks = {
        f"risk_at_coverage_{percent}": metrics.risk_at_coverage(errors, uncertainty, percent / 100)
        for percent in COVERAGES
    }
    found = {
        "aurc": metrics.aurc(errors, uncertainty),
        "excess_aurc": metrics.excess_aurc(errors, uncertainty),
        **risks,
        "error_auroc": metrics.error_auroc(uncertainty, errors),
    }
    return {name: number(value) for name, value in found.items()}


def region_confidence(cases):
    """Whether the regions that were found are lesions, and know it.

    precision: the share of them that touch the truth; ece: of their mean probability against
    that; error_auroc_*: of an uncertainty as a detector of the others, 1 - probability included.
    """
    if not cases:
        return {}
    regions = [region for case in cases for region in case.found_regions]
    probability, truth = (
        np.array([region[name] for region in regions], float)
        for name in ("probability", "share_of_truth")
    )
    right = truth > 0
    found = {
        "num_regions": len(regions),
        "precision": _mean(right),
        "ece": metrics.expected_calibration_error(probability, right, IMAGE_BINS, equal_mass=True),
        "error_auroc_probability": metrics.error_auroc(1 - probability, ~right),
    }
    names = ("epistemic", "aleatoric", "entropy", "std")
    # Statistics of earlier versions lack the last two.
    for name in (n for n in names if all(n in region for region in regions)):
        values = np.array([region[name] for region in regions], float)
        found[f"error_auroc_{name}"] = metrics.error_auroc(values, ~right)
    return {
        name: value if name == "num_regions" else number(value) for name, value in found.items()
    }


def _ratio(sums):
    return sums[..., 0] / sums[..., 1]


def _strata(cases):
    return {
        "strata": np.array([case.label for case in cases]),
        "clusters": np.array([case.patient for case in cases]),
    }


def _with_interval(name, statistics, metric, groups):
    low, high = metrics.bootstrap_interval(statistics, metric, **groups)
    value = metric(statistics.sum(0))
    return {name: number(value), f"{name}_ci95": [number(low), number(high)]}


def _mean(values):
    return float(np.mean(values)) if len(values) else None


def number(value):
    """A float for JSON; None for NaN."""
    return None if value is None or np.isnan(value) else float(value)
