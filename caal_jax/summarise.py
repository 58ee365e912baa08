"""Statistics of cases in, the numbers and the lines of the report out."""

import numpy as np

from caal_jax import breakdown, confidence_results, metrics
from caal_jax.case_statistics import LN2
from caal_jax.confidence_results import number
from caal_jax.metrics.calibration import reliability_from_statistics

GRID = np.linspace(0, 1, 101)  # where the bands of the curves are given
CURVE_POINTS = 201  # of a curve in metrics.json and in the figures, at most


# Metrics that are functions of sums over pixels: the section they belong to, the field of
# `CaseStatistics` that is summed over cases, and the function of the sum.
POOLED = {
    "pixel": {
        "ap": ("rank", metrics.average_precision_from_counts),
        "auroc": ("rank", metrics.roc_auc_from_counts),
        "best_dice": ("rank", metrics.best_dice_from_counts),
        "fpr95": ("rank", metrics.fpr_at_tpr_from_counts),
        "dice_at_5_fpr": ("rank", metrics.dice_at_fpr_from_counts),
        "aupro": ("regions", metrics.aupro_from_counts),
    },
    "object": breakdown.OBJECT,
    "confidence": confidence_results.POOLED,
}
IMAGE = {
    "ap": (metrics.average_precision, metrics.average_precision_from_counts),
    "auroc": (metrics.roc_auc, metrics.roc_auc_from_counts),
}


def summarise(config, cases):
    """(results, curves) of `CaseStatistics`: sections of metrics.json, and lines to draw.

    config: its `num_resamples` and `seed` drive the bootstrap over patients. Metrics that the
    cases do not define are None, with the reason in results["undefined"]["section.name"].
    Curves are plain lists; where a "band" stands beside, its 95% interval over patients.
    """
    resampling = {"num_resamples": config.num_resamples, "seed": config.seed}
    results = {"undefined": {}}
    masked = [case for case in cases if case.has_mask]
    for section, table in POOLED.items():
        results[section] = _pooled_section(section, table, cases, resampling, results["undefined"])
    lesions = [case for case in masked if case.label]
    # A lesion of a pixel or two is a box by chance.
    if sum(case.boxes is not None for case in lesions) > len(lesions) / 2:
        table = breakdown.BOXES
        results["object"] |= _pooled_section(
            "object", table, cases, resampling, results["undefined"]
        )
    further = confidence_results.further_confidence(cases, config.num_resamples, config.seed)
    results["confidence"] |= further
    results["undefined"] |= confidence_results.reasons(further)
    if masked:
        counts = np.sum([case.rank for case in masked], axis=0)[:, :2].sum(0)
        results["pixel"]["prevalence"] = number(counts[1] / counts.sum())
        means = breakdown.pixel_means(masked, **resampling)
        results["pixel"] |= means
        results["undefined"] |= breakdown.reasons(means)
    results["image"] = image_metrics(config, cases)
    if results["image"]["auroc"] is None:
        reason = "the test cases are all normal or all abnormal" if cases else "no test cases"
        results["undefined"] |= {f"image.{name}": reason for name in IMAGE}
    results |= {
        "by_kind": by_kind(cases, resampling),
        "by_size": by_size(cases, resampling),
        "by_lesion_size": breakdown.by_lesion_size(cases),
        "by_score": breakdown.by_score(cases),
    }
    for table in ("by_kind", "by_size"):
        for name, row in results[table].items():
            for key in (key for key, value in row.items() if value is None):
                results["undefined"][f"{table}.{name}.{key}"] = (
                    "there is no normal test case"
                    if key.startswith("image")
                    else "not every case of this line has a mask with something in it"
                )
    patients = breakdown.patient_metrics(cases, **resampling)
    if patients:
        results["patient"] = patients
    bars = dict.fromkeys(name for case in cases for name in case.bars)
    if bars:
        results["bars"] = {name: bar_metrics(name, cases, masked) for name in bars}
    slices = [case.slices for case in masked if case.slices is not None]
    if slices:
        owners = [case.patient for case in masked if case.slices is not None]
        patients = np.repeat(owners, [*map(len, slices)])
        results["slice"] = slice_metrics(np.concatenate(slices), patients, **resampling)
    if any(case.verdict for case in cases):
        results["verdicts"] = verdict_counts(cases)
    return results, _curves(cases, resampling, results)


def _pooled_section(section, table, cases, resampling, undefined):
    found = {}
    for name, (field, metric) in table.items():
        kept = [case for case in cases if getattr(case, field) is not None]
        found[name] = None
        if kept:
            statistics = statistics_of(kept, field)
            low, high = metrics.bootstrap_interval(
                statistics, metric, **groups_of(kept), **resampling
            )
            found[name] = number(metric(statistics.sum(0)))
            found[f"{name}_ci95"] = [number(low), number(high)]
        if found[name] is None:
            if not cases:
                reason = "no test cases"
            elif not any(case.has_mask for case in cases):
                reason = "no test case has a pixel mask"
            elif not kept:
                reason = "the maps come without what this needs"
            else:
                reason = "no masked test case is abnormal"
            undefined[f"{section}.{name}"] = reason
    return found


def statistics_of(cases, field):
    """One field of `CaseStatistics`, stacked over cases."""
    return np.stack([getattr(case, field) for case in cases])


def groups_of(cases):
    """What resampling has to keep together: labels as strata, patients as clusters."""
    return {
        "strata": np.array([case.label for case in cases]),
        "clusters": np.array([case.patient for case in cases]),
    }


def image_metrics(config, cases):
    """AP and AUROC of the case scores (volumes count as one), with intervals over patients."""
    labels = np.array([case.label for case in cases], bool)
    if labels.all() or not labels.any():
        return {"ap": None, "auroc": None}
    scores = np.array([case.score for case in cases])
    found = {}
    for name, (exact, from_counts) in IMAGE.items():
        low, high = metrics.image_bootstrap_interval(
            scores,
            labels,
            from_counts,
            num_resamples=config.num_resamples,
            seed=config.seed,
            clusters=np.array([case.patient for case in cases]),
        )
        found |= {name: number(exact(scores, labels)), f"{name}_ci95": [number(low), number(high)]}
    if len({case.patient for case in cases}) == len(cases):
        # Needs independent images; NaN where the AUROC is 0 or 1.
        found["auroc_delong_ci95"] = [*map(number, metrics.delong_interval(scores, labels))]
    found["prevalence"] = number(labels.mean())
    return found


def bar_metrics(name, cases, masked):
    """What a trivial bar reaches on the same cases."""
    labels = np.array([case.label for case in cases], bool)
    scores = np.array([case.bars[name][1] for case in cases])
    both = labels.any() and not labels.all()
    found = {
        "pixel_ap": None,
        "pixel_auroc": None,
        "image_auroc": number(metrics.roc_auc(scores, labels)) if both else None,
    }
    if masked:
        pooled = np.sum([case.bars[name][0] for case in masked], axis=0)
        found["pixel_ap"] = number(metrics.average_precision_from_counts(pooled))
        found["pixel_auroc"] = number(metrics.roc_auc_from_counts(pooled))
    return found


def by_kind(cases, resampling):
    """Each kind of anomaly against all normal cases.

    resampling: `num_resamples` and `seed` of the intervals over patients.
    """
    kinds = sorted({case.kind for case in cases if case.label})
    return {
        kind: _against_normal(cases, lambda case, k=kind: case.kind == k, resampling)
        for kind in kinds
    }


def by_size(cases, resampling):
    """Abnormal cases of each size of the anomaly, as a share of the image, against all normal."""
    sizes = {breakdown.size_of(case) for case in cases}
    return {
        size: _against_normal(cases, lambda case, s=size: breakdown.size_of(case) == s, resampling)
        for size in metrics.SIZES
        if size in sizes
    }


def _against_normal(cases, chosen, resampling):
    """The row of a table: the abnormal cases that `chosen(case)` accepts, beside all normal."""
    normal = [case for case in cases if not case.label]
    own = [case for case in cases if case.label and chosen(case)]
    both = [*normal, *own]
    row = {"num_cases": len(own), "pixel_ap": None, "prevalence": None, "image_auroc": None}
    if normal:
        scores, labels = (np.array([getattr(c, name) for c in both]) for name in ("score", "label"))
        ends = metrics.image_bootstrap_interval(
            scores,
            labels,
            metrics.roc_auc_from_counts,
            clusters=groups_of(both)["clusters"],
            **resampling,
        )
        row |= {
            "image_auroc": number(metrics.roc_auc(scores, labels)),
            "image_auroc_ci95": [*map(number, ends)],
        }
    if all(case.has_mask for case in both):
        ranks, metric = statistics_of(both, "rank"), metrics.average_precision_from_counts
        pooled = ranks.sum(axis=0)
        ends = metrics.bootstrap_interval(ranks, metric, **groups_of(both), **resampling)
        row |= {"pixel_ap": number(metric(pooled)), "pixel_ap_ci95": [*map(number, ends)]}
        row["prevalence"] = number(pooled[:, 1].sum() / pooled[:, :2].sum())
        regions, froc = (statistics_of(both, field).sum(axis=0) for field in ("regions", "froc"))
        row["pixel_aupro"] = number(metrics.aupro_from_counts(regions))
        row["sensitivity_at_1_alarm"] = number(metrics.froc_from_counts(froc, rates=(1.0,)))
    if any(case.verdict for case in own):
        row["found"] = sum(case.verdict == "abnormal" for case in own)
    return row


def slice_metrics(slices, patients, *, num_resamples, seed):
    """AP and AUROC of single slices of volumes, with intervals over patients.

    slices: (N, 2), score and truth: a slice is positive if its mask is not empty. patients: (N,).
    """
    scores, labels = slices[:, 0], slices[:, 1] > 0
    if labels.all() or not labels.any():
        return {"ap": None, "auroc": None, "prevalence": number(labels.mean())}
    found = {"prevalence": number(labels.mean())}
    for name, (exact, from_counts) in IMAGE.items():
        ends = metrics.image_bootstrap_interval(
            scores, labels, from_counts, clusters=patients, num_resamples=num_resamples, seed=seed
        )
        found |= {name: number(exact(scores, labels)), f"{name}_ci95": [*map(number, ends)]}
    return found


def verdict_counts(cases):
    """How often each verdict was given to normal and abnormal cases."""
    return {
        name: {
            verdict: sum(c.verdict == verdict for c in cases if c.label == label)
            for verdict in ("normal", "abnormal", "abstain")
        }
        for name, label in (("normal cases", 0), ("abnormal cases", 1))
    }


def _curves(cases, resampling, results):
    """Lines and bands, plain lists, for those that the cases define."""
    curves = {
        "score_distribution": {
            "normal": [case.score for case in cases if not case.label],
            "abnormal": [case.score for case in cases if case.label],
        }
    }

    def band(field, curve):
        kept = [case for case in cases if getattr(case, field) is not None]
        return curve_band(statistics_of(kept, field), curve, **groups_of(kept), **resampling)

    def pooled(field):
        kept = [getattr(case, field) for case in cases if getattr(case, field) is not None]
        return np.sum(kept, axis=0) if kept else None

    rank = pooled("rank")
    if rank is not None and (rank[:, :2].sum(0) > 0).all():
        histogram = metrics.ScoreHistogram()
        histogram.statistics = rank
        precision, recall, _ = histogram.precision_recall_curve()
        false, true, _ = histogram.roc_curve()
        curves["precision_recall"] = _thin(recall, recall=recall, precision=precision) | {
            "prevalence": results["pixel"]["prevalence"],
            "band": band("rank", precision_at_recall),
        }
        false, true = np.append(0, false), np.append(0, true)
        curves["roc"] = _thin(false, false_positive_rate=false, true_positive_rate=true) | {
            "band": band("rank", tpr_at_fpr)
        }
    froc = breakdown.froc_curve(cases)
    if froc is not None:
        ends = band("froc", breakdown.sensitivity_at_alarms)
        curves["froc"] = froc | {"band": ends | {"x": breakdown.FROC_GRID.tolist()}}
    calibrated = pooled("calibrated")
    if calibrated is not None:
        mean, accuracy, count = reliability_from_statistics(calibrated)
        used = count > 0
        reliability = band("calibrated", lambda sums: reliability_from_statistics(sums)[1])
        curves["reliability"] = {
            "confidence": mean[used].tolist(),
            "accuracy": accuracy[used].tolist(),
            "count": count[used].tolist(),
            "low": [reliability["low"][i] for i in np.flatnonzero(used)],
            "high": [reliability["high"][i] for i in np.flatnonzero(used)],
        }
    total = pooled("risk")
    if total is not None:
        risk = metrics.RiskHistogram(upper=LN2)
        risk.statistics = total
        coverage, error = risk.risk_coverage_curve()
        rate = error[-1]
        # The best order keeps every right pixel before the first wrong one.
        oracle = np.maximum(0.0, 1 - (1 - rate) / coverage)
        curves["risk_coverage"] = _thin(coverage, coverage=coverage, risk=error, oracle=oracle) | {
            "random": float(rate),
            "band": band("risk", risk_at_coverage),
        }
    return curves


def _thin(x, **columns):
    """Columns along a rising `x` in [0, 1], at no more than CURVE_POINTS places, as lists."""
    at = np.arange(len(x))
    if len(x) > CURVE_POINTS:
        at = np.unique(np.minimum(np.searchsorted(x, np.linspace(x[0], 1, CURVE_POINTS)), at[-1]))
    return {name: np.asarray(column)[at].tolist() for name, column in columns.items()}


def curve_band(statistics, curve, *, num_resamples, seed, strata, clusters):
    """{"x", "low", "high"}: the pointwise 95% interval of a curve over resampled patients.

    statistics: (N, ...), additive over cases. curve: maps sums (R, ...) to heights (R, G), at GRID
    or at places of its own. Points where no resample defines the curve are None.
    """
    flat = statistics.reshape(len(statistics), -1)
    weights = metrics.resample_weights(
        len(flat), num_resamples=num_resamples, seed=seed, strata=strata, clusters=clusters
    )
    shape = statistics.shape[1:]
    heights = np.concatenate(
        [
            curve((part @ flat).reshape(len(part), *shape))
            for part in np.array_split(weights, max(1, num_resamples // 50))
        ]
    )
    ends = np.full((2, heights.shape[1]), np.nan)
    known = np.isfinite(heights).any(axis=0)
    ends[:, known] = np.nanquantile(heights[:, known], [0.025, 0.975], axis=0)
    low, high = [[number(value) for value in row] for row in ends]
    return {"x": GRID.tolist(), "low": low, "high": high}


def precision_at_recall(counts):
    """Precision of the highest threshold that reaches each recall of GRID: counts (R, K, >= 2) by
    rising score -> (R, G)."""
    false, true = np.moveaxis(np.cumsum(counts[:, ::-1, :2], axis=1), -1, 0)
    found = np.full((len(counts), GRID.size), np.nan)
    for row, (f, t) in enumerate(zip(false, true, strict=True)):
        if t[-1] > 0:
            # The tolerance forgives the rounding of the product.
            at = np.searchsorted(t, np.maximum(GRID * t[-1], t[t > 0][0]) - 1e-9)
            found[row] = t[at] / (t[at] + f[at])
    return found


def tpr_at_fpr(counts):
    """True positive rate at each false positive rate of GRID: counts (R, K, >= 2) by rising score
    -> (R, G); linear between thresholds."""
    false, true = np.moveaxis(np.cumsum(counts[:, ::-1, :2], axis=1), -1, 0)
    found = np.full((len(counts), GRID.size), np.nan)
    for row, (f, t) in enumerate(zip(false, true, strict=True)):
        if t[-1] > 0 and f[-1] > 0:
            found[row] = np.interp(GRID, np.append(0, f / f[-1]), np.append(0, t / t[-1]))
    return found


def risk_at_coverage(statistics):
    """Mean loss of the surest share at each coverage of GRID: statistics (R, K, 2) -> (R, G)."""
    items, losses = np.moveaxis(np.cumsum(statistics, axis=1), -1, 0)
    found = np.full((len(statistics), GRID.size), np.nan)
    for row, (n, loss) in enumerate(zip(items, losses, strict=True)):
        if n[-1] > 0:
            at = np.searchsorted(n, np.maximum(GRID * n[-1], n[n > 0][0]) - 1e-9)
            found[row] = loss[at] / n[at]
    return found
