"""Beside the pooled numbers: lesions as objects, and results by image, patient, size and score."""

import functools

import numpy as np

from caal_jax import metrics

FROC_GRID = np.linspace(0, 10, 41)  # false alarms per case at which the band of the FROC is given
# Upper ends of the size of a lesion, in pixels or voxels.
LESION_SIZES = {"< 10 px": 10, "10 to 99 px": 100, "100 to 999 px": 1000, ">= 1000 px": np.inf}


def ratio(sums):
    """Sums (..., 2) of a quantity and of its weight -> means (...); NaN without weight."""
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


# As `summarise.POOLED`: the field of `CaseStatistics` that is summed, and the metric of the sum.
OBJECT = {
    "froc": ("froc", metrics.froc_from_counts),
    "sensitivity_at_1_alarm": ("froc", functools.partial(metrics.froc_from_counts, rates=(1.0,))),
    "pointing_game": ("pointing", ratio),
}
# Where the truth is boxes: the share of them that is found, by the least overlap that counts.
BOX_IOUS = (0.1, 0.3, 0.5)
BOXES = {
    f"box_recall_{iou:.0%}": ("boxes", lambda sums, at=at: ratio(sums[..., [at, -1]]))
    for at, iou in enumerate(BOX_IOUS)
}


def boxes_of(probability, mask):
    """What is kept of a map (H, W) and a mask that is boxes: sums for `BOXES`, (4,); else None.

    The boxes that were found at each of BOX_IOUS, and their number: `metrics.box_recall` at a
    probability of one half. None too for volumes and without a lesion.
    """
    if mask.ndim != 2 or not mask.any():
        return None
    boxes = metrics.boxes_of(mask)
    if boxes[:, 2:].prod(axis=1).sum() != mask.sum():
        return None
    return np.append(metrics.box_recall(probability, boxes, 0.5, ious=BOX_IOUS), 1) * len(boxes)


def objects_of(ranked, mask):
    """What is kept of a map in [0, 1] and its mask, (H, W) or (D, H, W), about objects: a dict.

    froc: `metrics.froc_counts`. lesions: (L, 2), size in pixels and score of each lesion, -1 where
    no peak of the map lies in it. pointing: (2,), hits and images of the pointing game.
    """
    found = metrics.detections(ranked, mask)
    score = np.maximum(found.lesion_scores, -1.0)
    hit = metrics.pointing_game(ranked, mask)
    return {
        "froc": metrics.froc_counts(found),
        "lesions": np.stack([found.lesion_sizes, score], axis=1).astype(np.float64),
        "pointing": np.array([0.0, 0.0] if np.isnan(hit) else [hit, 1.0]),
    }


def pixel_means(cases, *, num_resamples, seed):
    """Pixel metrics as means over abnormal images or patients, with intervals over patients.

    cases: `CaseStatistics` with masks. AUPIMO, and AP of each image or patient alone, count the
    abnormal; Dice at the best pooled threshold counts all images, an empty map of a normal one
    being right. Values are None where undefined.
    """
    counts = np.stack([case.rank[:, :2] for case in cases])
    patients = np.array([case.patient for case in cases])
    ap = metrics.average_precision_from_counts
    of_patients = metrics.by_group(counts, patients, ap)
    dice = metrics.dice_from_counts(counts.sum(axis=0))
    threshold = np.flatnonzero(dice == np.max(dice))
    of_images = np.full(len(cases), np.nan)
    if threshold.size:
        of_images = metrics.image_dice_from_counts(counts, threshold[-1] / counts.shape[1])
    found = {}
    for name, values, clusters in (
        ("aupimo", metrics.aupimo_from_counts(counts), patients),
        ("ap_per_image", ap(counts), patients),
        ("ap_per_patient", np.array([*of_patients.values()]), np.array([*of_patients])),
        ("dice_per_image", of_images, patients),
    ):
        known = ~np.isnan(values)
        if not known.any():
            found[name] = None
            continue
        sums = np.stack([values[known], np.ones(known.sum())], axis=-1)
        ends = metrics.bootstrap_interval(
            sums, ratio, num_resamples=num_resamples, seed=seed, clusters=clusters[known]
        )
        found |= {name: float(values[known].mean()), f"{name}_ci95": [*ends]}
    return found


def reasons(means):
    """Why values of `pixel_means` are None: {"pixel.name": reason}."""
    why = dict.fromkeys(means, "no masked test case is abnormal") | {
        "aupimo": "it takes abnormal and normal cases with masks, and about 100,000 normal pixels"
        " whose scores differ"
    }
    return {f"pixel.{name}": why[name] for name, value in means.items() if value is None}


def size_of(case):
    """The group in `metrics.SIZES` of an abnormal case with a mask; None for any other."""
    if not case.label or case.rank is None or not case.rank[:, 1].any():
        return None
    negatives, positives = case.rank[:, :2].sum(axis=0)
    return metrics.size_group(positives, negatives + positives)


def by_lesion_size(cases):
    """Lesions found at one false alarm per case, by their size: {size: {num_lesions, sensitivity}}.

    Sizes without lesions are left out, and so are cases without masks.
    """
    cases = [case for case in cases if case.froc is not None]
    lesions = np.concatenate([np.zeros((0, 2)), *(case.lesions for case in cases)])
    counts = np.sum([case.froc for case in cases], axis=0) if cases else np.zeros((2, 2))
    num_bins = len(counts) - 1
    bins = np.minimum(np.floor(lesions[:, 1] * num_bins), num_bins - 1)
    kept = num_bins - np.count_nonzero(metrics.froc_curve_from_counts(counts)[0] <= 1)
    found, smallest = {}, 0
    for name, largest in LESION_SIZES.items():
        own = (lesions[:, 0] >= smallest) & (lesions[:, 0] < largest)
        smallest = largest
        if own.any():
            sensitivity = float(np.mean(bins[own] >= kept))
            found[name] = {"num_lesions": int(own.sum()), "sensitivity": sensitivity}
    return found


def patient_metrics(cases, *, num_resamples, seed):
    """AP and AUROC of patients, each scored by its most abnormal case: as `image` in the results.

    Empty where no patient has several cases, or where all are normal or all abnormal.
    """
    names, member = np.unique([case.patient for case in cases], return_inverse=True)
    scores, labels = np.full(names.size, -np.inf), np.zeros(names.size, bool)
    np.maximum.at(scores, member, [case.score for case in cases])
    np.logical_or.at(labels, member, [bool(case.label) for case in cases])
    if names.size == len(cases) or labels.all() or not labels.any():
        return {}
    found = {"num_patients": int(names.size), "prevalence": float(labels.mean())}
    for name, exact, from_counts in (
        ("ap", metrics.average_precision, metrics.average_precision_from_counts),
        ("auroc", metrics.roc_auc, metrics.roc_auc_from_counts),
    ):
        ends = metrics.image_bootstrap_interval(
            scores, labels, from_counts, num_resamples=num_resamples, seed=seed
        )
        found |= {name: exact(scores, labels), f"{name}_ci95": [*ends]}
    return found


def by_score(cases):
    """AP and AUROC of the cases by every way to turn a map into one score: {way: {...}}.

    Ways are those of `metrics.image_scores`; empty unless cases of both classes have them.
    """
    known = [case for case in cases if case.image_scores]
    labels = np.array([case.label for case in known], bool)
    if not known or labels.all() or not labels.any():
        return {}
    # FPI's score is there for volumes only.
    names = [name for name in known[0].image_scores if all(name in c.image_scores for c in known)]
    found = {}
    for name in names:
        scores = np.array([case.image_scores[name] for case in known])
        found[name] = {
            "image_ap": metrics.average_precision(scores, labels),
            "image_auroc": metrics.roc_auc(scores, labels),
        }
    return found


def sensitivity_at_alarms(counts):
    """Sensitivity at each rate of FROC_GRID: counts (R, K, 2) of `froc_counts` -> (R, G)."""
    alarms, sensitivity = metrics.froc_curve_from_counts(counts)
    kept = [np.where(alarms <= rate + 1e-12, sensitivity, 0.0).max(-1) for rate in FROC_GRID]
    return np.stack(kept, axis=-1)


def froc_curve(cases):
    """{"false_positives", "sensitivity"}, lists by falling score; None without lesions."""
    counts = np.sum([case.froc for case in cases if case.froc is not None], axis=0)
    if not np.ndim(counts) or not counts[:, 1].any():
        return None
    alarms, sensitivity = metrics.froc_curve_from_counts(counts)
    corner = np.append(True, (np.diff(alarms) > 0) | (np.diff(sensitivity) > 0))
    alarms, sensitivity = np.append(0, alarms[corner]), np.append(0, sensitivity[corner])
    return {"false_positives": alarms.tolist(), "sensitivity": sensitivity.tolist()}
