"""evaluate(config, workdir, dataset): maps, metrics and report for the test split."""

import csv
import dataclasses
import io
import json
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from scipy.special import logit
from tqdm import tqdm

from caal_jax import files, metrics, report
from caal_jax.baselines.trivial import equalised_intensity, raw_intensity
from caal_jax.confidence.decision import volume_score
from caal_jax.data.letterbox import unletterbox
from caal_jax.data.writers import write_map
from caal_jax.errors import InputError
from caal_jax.localise import FinishedRun, case_stack, map_score
from caal_jax.preprocess import foreground, rescale

LN2 = float(np.log(2))
BARS = (raw_intensity, equalised_intensity)
VERSIONS = ("caal_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")

# Fields of the results that are ratios of sums over pixels: how each comes from a histogram.
PIXEL_METRICS = {
    "ap": metrics.average_precision_from_counts,
    "auroc": metrics.roc_auc_from_counts,
    "best_dice": metrics.best_dice_from_counts,
    "fpr95": metrics.fpr_at_tpr_from_counts,
}


def rank_scale(probability):
    """Probabilities to [0, 1] with their order kept and small ones told apart.

    A histogram of equal bins of the probability would put nearly all healthy pixels into its
    first bin; logits between -14 and 14 spread them over all bins.
    """
    return np.clip((logit(np.clip(probability, 1e-6, 1 - 1e-6)) + 14) / 28, 0, 1)


@dataclasses.dataclass
class CaseStatistics:
    """What is kept of one test case: sums for the metrics, never a map."""

    case_id: str
    patient: str
    kind: str
    label: int
    score: float
    score_std: float
    probability: float
    p_value: float
    verdict: str
    has_mask: bool
    rank: np.ndarray | None = None  # ScoreHistogram.statistics of rank_scale
    calibrated: metrics.ScoreHistogram | None = None  # of the probability
    regions: np.ndarray | None = None
    risk: np.ndarray | None = None  # RiskHistogram.statistics by predictive entropy
    epistemic_risk: np.ndarray | None = None  # the same by mutual information
    bars: dict = dataclasses.field(default_factory=dict)  # name -> (statistics or None, score)
    slices: np.ndarray | None = None  # (D, 2): score and truth of each slice of a volume


def evaluate(config, workdir, dataset):
    """Scores the test split of a data set with a finished run.

    Writes predictions/ (maps in the cases' geometry and scores.csv), metrics.json, figures/ and
    report.html into the workdir. Returns the results, as in metrics.json. Cases that cannot be
    read are skipped and counted in the report.
    """
    began = time.monotonic()
    workdir = Path(workdir)
    run = FinishedRun.load(workdir)
    maps = files.folder(workdir / "predictions")
    cases, gallery, skipped = [], [], []
    names = files.distinct_names([entry.case_id for entry in dataset.test])
    entries = zip(names, tqdm(dataset.test, desc="evaluating", unit="case"), strict=True)
    for name, entry in entries:
        try:
            case = with_truth(entry.load())
            prediction = run.predict(case)
        except InputError as error:
            skipped.append(f"{entry.case_id} ({error})")
            continue
        write_maps(maps / name, prediction, case)
        cases.append(case_statistics(case, prediction, bar_maps(run, case)))
        gallery.append(gallery_item(case, prediction))
    files.write_text(maps / "scores.csv", scores_csv(cases))
    history = read_history(workdir)
    notes = [*dataset.notes, *json.loads((workdir / "training.json").read_text())["notes"]]
    if skipped:
        notes.append(f"{len(skipped)} test cases were skipped, the first being {skipped[0]}.")
    results, curves = summarise(config, cases)
    curves["score_distribution"]["threshold"] = run.decisions.threshold
    results["data"] = {
        "name": dataset.name,
        "is_phantom": dataset.stamp == "phantom",
        "stamp": dataset.stamp,
        "num_train": len(dataset.train),
        "num_validation": len(dataset.validation),
        "num_test": len(cases),
        "notes": notes,
    }
    results |= decision_facts(run)
    train_seconds = history[-1]["seconds"] if history else 0.0
    results["run"] = run_facts(config, train_seconds + time.monotonic() - began)
    files.write_text(workdir / "metrics.json", json.dumps(results, indent=1, allow_nan=False))
    report.write_report(
        workdir, results=results, curves=curves, history=history, gallery=choose_gallery(gallery)
    )
    return results


def with_truth(case):
    """The case, if it can be scored at all. Raises `InputError` otherwise."""
    if case.label is None and case.mask is None:
        raise InputError(
            case.geometry.path or case.case_id,
            found="neither a label nor a mask",
            expected="a test case with truth",
            remedy="Use caal_jax.predict for images without truth.",
        )
    return case


def write_maps(stem, prediction, case):
    """The anomaly map, and the epistemic uncertainty as a share of its largest value, ln 2."""
    write_map(f"{stem}_anomaly", prediction.anomaly, case)
    write_map(f"{stem}_uncertainty", np.clip(prediction.epistemic / LN2, 0, 1), case)


def bar_maps(run, case):
    """The anomaly maps of the trivial bars, {name: (map, score)}, on the case's own grid."""
    config = run.config
    stack = case_stack(case, image_size=config.image_size, channels=run.channels)
    image, inside = _bar_input(stack.raw, stack.low, stack.high, config.foreground_threshold)
    found = {}
    for bar in BARS:
        squares = np.asarray(bar.predict(bar.fit(image), image, inside))
        score = map_score(squares, np.asarray(inside), config)
        native = np.stack([unletterbox(one, stack.place) for one in squares])
        found[bar.name] = (native if case.is_volume else native[0], score)
    return found


@jax.jit
def _bar_input(raw, low, high, threshold):
    image = jax.vmap(rescale)(raw, low, high)
    inside = jax.vmap(lambda one: foreground(one, threshold=threshold))(image)
    return image, inside[..., 0]


def case_statistics(case, prediction, bars):
    """Reduces maps and truth of a case to sums."""
    has_mask = case.mask is not None
    found = CaseStatistics(
        case_id=case.case_id,
        patient=case.patient or case.case_id,
        kind=case.kind,
        label=int(case.label if case.label is not None else case.mask.any()),
        score=prediction.score,
        score_std=prediction.score_std,
        probability=prediction.probability,
        p_value=prediction.p_value,
        verdict=prediction.verdict,
        has_mask=has_mask,
        bars={name: (None, score) for name, (_, score) in bars.items()},
    )
    if not has_mask:
        return found
    mask = case.mask.astype(bool)
    ranked = rank_scale(prediction.anomaly)
    wrong = (prediction.anomaly >= 0.5) != mask
    total = np.clip(prediction.epistemic + prediction.aleatoric, 0, LN2)
    found.rank = metrics.ScoreHistogram().update(ranked, mask).statistics
    found.calibrated = metrics.ScoreHistogram().update(prediction.anomaly, mask)
    found.regions = metrics.RegionHistogram().update(ranked, mask).statistics
    found.risk = metrics.RiskHistogram(upper=LN2).update(wrong, total).statistics
    found.epistemic_risk = (
        metrics.RiskHistogram(upper=LN2)
        .update(wrong, np.clip(prediction.epistemic, 0, LN2))
        .statistics
    )
    found.bars = {
        name: (metrics.ScoreHistogram().update(np.clip(values, 0, 1), mask).statistics, score)
        for name, (values, score) in bars.items()
    }
    if case.is_volume:
        scores = [
            volume_score(one, inside, q=0.01)
            for one, inside in zip(prediction.anomaly, prediction.foreground, strict=True)
        ]
        found.slices = np.stack([scores, mask.any(axis=(1, 2))], axis=1)
    return found


def summarise(config, cases):
    """Per-case sums to (results, curves), the numbers and the lines of the report."""
    undefined = {}

    def section(name, values, reasons):
        for key, value in values.items():
            if not key.endswith("_ci95") and value is None:
                undefined[f"{name}.{key}"] = reasons
        return values

    masked = [case for case in cases if case.has_mask]
    no_cases = "no test cases" if not cases else "no test case has a pixel mask"
    one_class = "the test cases are all normal or all abnormal" if cases else "no test cases"
    pixel, confidence, curves = {}, {}, {}
    if masked:
        pixel, confidence, curves = _pixel_sections(config, masked)
        no_cases = "no masked test case is abnormal"
    else:
        pixel = dict.fromkeys([*PIXEL_METRICS, "aupro", "prevalence"])
        confidence = dict.fromkeys(("ece", "brier", "nll", "aurc", "error_auroc"))
    results = {
        "pixel": section("pixel", pixel, no_cases),
        "image": section("image", image_metrics(config, cases), one_class),
        "confidence": section("confidence", confidence, no_cases),
        "by_kind": by_kind(cases),
        "bars": {bar.name: bar_metrics(bar.name, cases, masked) for bar in BARS},
    }
    slices = [case.slices for case in masked if case.slices is not None]
    if slices:
        results["slice"] = slice_metrics(np.concatenate(slices))
    results["verdicts"] = verdict_counts(cases)
    results["undefined"] = undefined
    curves["score_distribution"] = {
        "normal": [case.score for case in cases if not case.label],
        "abnormal": [case.score for case in cases if case.label],
    }
    return results, curves


def _pixel_sections(config, cases):
    groups = {
        "strata": np.array([case.label for case in cases]),
        "clusters": np.array([case.patient for case in cases]),
        "num_resamples": config.num_resamples,
        "seed": config.seed,
    }

    def with_interval(statistics, metric):
        statistics = np.stack(statistics)
        low, high = metrics.bootstrap_interval(statistics, metric, **groups)
        return number(metric(statistics.sum(0))), [number(low), number(high)]

    pixel, confidence = {}, {}
    ranks = [case.rank for case in cases]
    for name, metric in PIXEL_METRICS.items():
        pixel[name], pixel[f"{name}_ci95"] = with_interval(ranks, metric)
    pixel["aupro"], pixel["aupro_ci95"] = with_interval(
        [case.regions for case in cases], metrics.aupro_from_counts
    )
    counts = np.sum(ranks, axis=0)[:, :2].sum(0)
    pixel["prevalence"] = number(counts[1] / counts.sum())

    confidence["ece"], confidence["ece_ci95"] = with_interval(
        [case.calibrated.statistics for case in cases],
        metrics.expected_calibration_error_from_statistics,
    )
    losses = [case.calibrated.loss_sums for case in cases]
    for column, name in enumerate(("brier", "nll")):
        confidence[name], confidence[f"{name}_ci95"] = with_interval(
            losses, lambda sums, c=column: sums[..., c] / sums[..., 2]
        )
    risks = [case.risk for case in cases]
    epistemic = [case.epistemic_risk for case in cases]
    confidence["aurc"], confidence["aurc_ci95"] = with_interval(risks, metrics.aurc_from_statistics)
    confidence["error_auroc"], confidence["error_auroc_ci95"] = with_interval(risks, _error_auroc)
    confidence["aurc_epistemic"] = number(metrics.aurc_from_statistics(np.sum(epistemic, 0)))
    confidence["error_auroc_epistemic"] = number(_error_auroc(np.sum(epistemic, 0)))

    pooled = metrics.ScoreHistogram()
    pooled.statistics = np.sum(ranks, axis=0)
    precision, recall, _ = pooled.precision_recall_curve()
    calibrated = metrics.ScoreHistogram()
    for case in cases:
        calibrated.merge(case.calibrated)
    mean, accuracy, count = calibrated.reliability()
    risk = metrics.RiskHistogram(upper=LN2)
    risk.statistics = np.sum(risks, axis=0)
    coverage, error = risk.risk_coverage_curve()
    rate = error[-1]
    curves = {
        "precision_recall": {
            "recall": recall,
            "precision": precision,
            "prevalence": pixel["prevalence"],
        },
        "reliability": {"confidence": mean, "accuracy": accuracy, "count": count},
        "risk_coverage": {
            "coverage": coverage,
            "risk": error,
            "random": np.full(len(coverage), rate),
            # The best order keeps every right pixel before the first wrong one.
            "oracle": np.maximum(0.0, 1 - (1 - rate) / coverage),
        },
    }
    return pixel, confidence, curves


def _error_auroc(statistics):
    items, errors = np.moveaxis(statistics, -1, 0)
    return metrics.roc_auc_from_counts(np.stack([items - errors, errors], axis=-1))


def image_metrics(config, cases):
    """AP and AUROC of the case scores (volumes count as one), with intervals over patients."""
    labels = np.array([case.label for case in cases], bool)
    if labels.all() or not labels.any():
        return {"ap": None, "auroc": None}
    scores = np.array([case.score for case in cases])
    found = {}
    for name, metric in (
        ("ap", metrics.average_precision_from_counts),
        ("auroc", metrics.roc_auc_from_counts),
    ):
        exact = metrics.average_precision if name == "ap" else metrics.roc_auc
        low, high = metrics.image_bootstrap_interval(
            scores,
            labels,
            metric,
            num_resamples=config.num_resamples,
            seed=config.seed,
            clusters=np.array([case.patient for case in cases]),
        )
        found |= {name: number(exact(scores, labels)), f"{name}_ci95": [low, high]}
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


def by_kind(cases):
    """Each kind of anomaly against all normal cases."""
    normal = [case for case in cases if not case.label]
    found = {}
    for kind in sorted({case.kind for case in cases if case.label}):
        own = [case for case in cases if case.label and case.kind == kind]
        both = [*normal, *own]
        row = {"num_cases": len(own), "pixel_ap": None, "prevalence": None, "image_auroc": None}
        if normal:
            labels = np.array([case.label for case in both])
            scores = np.array([case.score for case in both])
            row["image_auroc"] = number(metrics.roc_auc(scores, labels))
        if all(case.has_mask for case in both):
            pooled = np.sum([case.rank for case in both], axis=0)
            row["pixel_ap"] = number(metrics.average_precision_from_counts(pooled))
            row["prevalence"] = number(pooled[:, 1].sum() / pooled[:, :2].sum())
        row["found"] = sum(case.verdict == "abnormal" for case in own)
        found[kind] = row
    return found


def slice_metrics(slices):
    """AP and AUROC of single slices of volumes; a slice is positive if its mask is not empty."""
    scores, labels = slices[:, 0], slices[:, 1] > 0
    if labels.all() or not labels.any():
        return {"ap": None, "auroc": None, "prevalence": number(labels.mean())}
    return {
        "ap": number(metrics.average_precision(scores, labels)),
        "auroc": number(metrics.roc_auc(scores, labels)),
        "prevalence": number(labels.mean()),
    }


def verdict_counts(cases):
    """How often each verdict was given to normal and abnormal cases."""
    return {
        name: {
            verdict: sum(c.verdict == verdict for c in cases if c.label == label)
            for verdict in ("normal", "abnormal", "abstain")
        }
        for name, label in (("normal cases", 0), ("abnormal cases", 1))
    }


def number(value):
    """A float for JSON; None for NaN."""
    return None if np.isnan(value) else float(value)


def scores_csv(cases):
    """scores.csv: one line per case."""
    names = ("case_id", "kind", "label", "score", "score_std", "probability", "p_value", "verdict")
    return csv_text(names, [[getattr(case, name) for name in names] for case in cases])


def csv_text(names, rows):
    """Rows as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(map(safe_row, rows))
    return out.getvalue()


def safe_row(row):
    """A row whose texts a spreadsheet will not run as formulas: those get a leading quote."""
    return [
        f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" else cell for cell in row
    ]


def gallery_item(case, prediction, why=""):
    """The telling slice of a case: most truth, else the highest anomaly score."""
    if case.is_volume:
        by_truth = case.mask.sum(axis=(1, 2)) if case.mask is not None else np.zeros(1)
        inside = np.where(prediction.foreground, prediction.anomaly, 0)
        at = int(np.argmax(by_truth if by_truth.any() else inside.sum(axis=(1, 2))))
        text = f"slice {at + 1} of {len(case.image)}"
    else:
        at, text = ..., ""
    image = prediction.image[at]
    return report.GalleryItem(
        case_id=case.case_id,
        kind=case.kind,
        label=case.label,
        score=prediction.score,
        probability=prediction.probability,
        verdict=prediction.verdict,
        uncertainty=prediction.score_std,
        image=np.float32(image[..., 0] if image.shape[-1] == 1 else image),
        truth=None if case.mask is None else case.mask[at].astype(bool),
        anomaly_map=np.float32(prediction.anomaly[at]),
        uncertainty_map=np.float32(prediction.epistemic[at]),
        slice_text=text,
        why=why,
    )


def choose_gallery(items, each=4):
    """Best, worst and random cases; nearest to and farthest from what their label asks for."""

    def error(item):
        return abs(item.probability - item.label)

    known = sorted((item for item in items if item.label is not None), key=error)
    abnormal = [item for item in known if item.label]
    chosen = [(item, "best") for item in (abnormal or known)[:each]]
    taken = {item.case_id for item, _ in chosen}
    worst = [item for item in reversed(known) if item.case_id not in taken][:each]
    chosen += [(item, "worst") for item in worst]
    taken |= {item.case_id for item in worst}
    rest = [item for item in items if item.case_id not in taken]
    order = np.random.default_rng(0).permutation(len(rest))[:each]
    chosen += [(rest[i], "random") for i in order]
    return [dataclasses.replace(item, why=why) for item, why in chosen]


def read_history(workdir):
    """The training curve, a list of dicts."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def decision_facts(run):
    """Threshold and calibration, with the rule behind each, for the report."""
    decisions, config = run.decisions, run.config
    count = len(decisions.healthy_scores)
    return {
        "threshold": {
            "value": round(decisions.threshold, 4),
            "rule": f"set on {count} held-out healthy cases for a false-positive rate of "
            f"{config.false_positive_rate:.0%}; with that many, {decisions.false_positive_rate:.1%}"
            " is what it keeps on average. No test case was used.",
        },
        "calibration": {
            "temperature": round(decisions.pixel.temperature, 3),
            "rule": f"fitted on held-out healthy cases and synthetic anomalies ({config.task}) "
            "made in them; real anomalies may be calibrated differently.",
        },
    }


def run_facts(config, wall_seconds):
    """What is needed to trust or repeat a run."""
    return {
        "config": json.loads(config.to_json()),
        "seed": config.seed,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in VERSIONS},
        "device": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        "wall_seconds": round(wall_seconds, 1),
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_commit():
    """The commit of the checkout the package runs from, or None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
