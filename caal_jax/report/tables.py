"""The nested results of metrics.json in, rows with labels and intervals out; and as plain text.

Only what is known gets a hand-written label; any other key is shown under its own name, so a new
metric needs no change here.
"""

import math
import numbers
from typing import NamedTuple


class Metric(NamedTuple):
    """How a metric is called and read. chance: its value without skill, None where there is none.

    better: "higher", "lower" or "" where neither is better.
    """

    label: str
    meaning: str = ""
    better: str = ""
    chance: float | None = None


METRICS = {
    "ap": Metric("AP", "average precision", "higher"),  # its chance level is the prevalence
    "auroc": Metric("AUROC", "area under the ROC curve", "higher", 0.5),
    "aupro": Metric("AUPRO", "overlap per region, up to 30% false positives", "higher", 0.15),
    "aupimo": Metric("AUPIMO", "overlap per image at very few false positives", "higher"),
    "best_dice": Metric("Best Dice", "Dice at the best threshold in hindsight", "higher"),
    "fpr95": Metric("FPR95", "false alarms when 95% is found", "lower", 0.95),
    "dice_at_5_fpr": Metric("Dice at 5% FPR", "Dice at 5% false alarms in hindsight", "higher"),
    "ap_per_image": Metric("AP, mean of images", "each abnormal image counts alike", "higher"),
    "ap_per_patient": Metric("AP, mean of patients", "each patient counts alike", "higher"),
    "dice_per_image": Metric("Dice, mean of images", "at the best pooled threshold", "higher"),
    "froc": Metric("FROC", "lesions hit, mean over 1/4 to 8 false alarms per case", "higher"),
    "sensitivity_at_1_alarm": Metric(
        "Lesions hit at 1 alarm", "share, at one false alarm per case on average", "higher"
    ),
    "pointing_game": Metric("Pointing game", "is the largest score inside a lesion?", "higher"),
    "box_recall_10%": Metric("Boxes found, IoU 0.1", "share, at a probability of 0.5", "higher"),
    "box_recall_30%": Metric("Boxes found, IoU 0.3", "share, at a probability of 0.5", "higher"),
    "box_recall_50%": Metric("Boxes found, IoU 0.5", "share, at a probability of 0.5", "higher"),
    "num_lesions": Metric("Lesions"),
    "sensitivity": Metric("Hit at 1 alarm", "share, at one false alarm per case", "higher"),
    "prevalence": Metric("Prevalence", "abnormal share"),
    "ece": Metric("ECE", "expected calibration error", "lower"),
    "ece_uncalibrated": Metric("ECE before", "without the temperature", "lower"),
    "ece_equal_mass": Metric("ECE, equal mass", "bins of equally many pixels", "lower"),
    "ece_decision": Metric("ECE of the decision", "of the surer class", "lower"),
    "ece_lesion": Metric("ECE inside lesions", "mean of 1 - p over abnormal pixels", "lower"),
    "max_calibration_error": Metric("Largest gap", "of any bin of the ECE", "lower"),
    "rms_calibration_error": Metric("RMS calibration error", "without sampling noise", "lower"),
    "brier": Metric("Brier score", "squared error of the probability", "lower"),
    "brier_reliability": Metric("Brier: reliability", "its part from miscalibration", "lower"),
    "brier_resolution": Metric("Brier: resolution", "what telling apart takes off", "higher"),
    "brier_uncertainty": Metric("Brier: uncertainty", "of the prevalence alone"),
    "nll": Metric("NLL", "negative log-likelihood", "lower"),
    "nll_uncalibrated": Metric("NLL before", "without the temperature", "lower"),
    "aurc": Metric("AURC", "mean risk over all coverages", "lower"),
    "excess_aurc": Metric("Excess AURC", "above the best order's", "lower"),
    "risk_at_coverage_80": Metric("Risk at 80%", "share wrong of the surest 80%", "lower"),
    "risk_at_coverage_90": Metric("Risk at 90%", "share wrong of the surest 90%", "lower"),
    "risk_at_coverage_95": Metric("Risk at 95%", "share wrong of the surest 95%", "lower"),
    "error_ap": Metric("Error AP", "does it find the errors? average precision", "higher"),
    "error_auroc_per_image": Metric("Error AUROC, mean of images", "", "higher", 0.5),
    "error_correlation": Metric("Correlation", "Spearman's, with the error", "higher", 0.0),
    "num_images_error_auroc": Metric("Images with errors", "in the mean of error AUROCs"),
    "num_images_error_correlation": Metric("Images that vary", "in the mean of correlations"),
    "patch_accurate_given_certain": Metric("Patches: right if certain", "of 4 x 4", "higher"),
    "patch_uncertain_given_wrong": Metric("Patches: uncertain if wrong", "of 4 x 4", "higher"),
    "patch_pavpu": Metric("Patches: PAvPU", "right and certain, or neither", "higher"),
    "gain": Metric("Gain over the entropy", "in error AUROC", "higher", 0.0),
    "error_rate": Metric("Error rate", "decided wrongly, abstained on or not", "lower"),
    "error_rate_decided": Metric("Error rate, decided", "of those not abstained on", "lower"),
    "false_positive_rate": Metric("False-positive rate", "of normal images", "lower"),
    "abstained": Metric("Abstained", "share of images"),
    "num_regions": Metric("Regions found"),
    "precision": Metric("Precision", "share that touches a lesion", "higher"),
    "std_coverage_50": Metric("Coverage of 50% intervals", "of the label, should be 0.5"),
    "std_coverage_80": Metric("Coverage of 80% intervals", "of the label, should be 0.8"),
    "std_coverage_90": Metric("Coverage of 90% intervals", "of the label, should be 0.9"),
    "std_coverage_95": Metric("Coverage of 95% intervals", "of the label, should be 0.95"),
    "std_sharpness": Metric("Mean std", "predicted, inside synthetic anomalies"),
    "std_z_score_std": Metric("Std of z", "errors over stds; 1 is right, more is too sure"),
    "std_normalised_error": Metric("ENCE", "relative error of the std, by std", "lower"),
    "aurc_epistemic": Metric(
        "AURC, epistemic", "the same, ordered by the difference of samples alone", "lower"
    ),
    "error_auroc_epistemic": Metric(
        "Error AUROC, epistemic", "does the difference of samples find them?", "higher", 0.5
    ),
    "error_auroc": Metric("Error AUROC", "does uncertainty find the errors?", "higher", 0.5),
    "num_cases": Metric("Cases"),
    "num_train": Metric("Training cases"),
    "num_validation": Metric("Validation cases"),
    "num_test": Metric("Test cases"),
    "wall_seconds": Metric("Training steps and evaluation took"),
    "is_phantom": Metric("Phantom"),
    "git_commit": Metric("Git commit"),
}

LEVELS = ("pixel", "image", "slice", "volume", "patient")
# The parts of the results that are not metrics; keys that start with "by_" are grids.
FACTS = ("bars", "data", "threshold", "calibration", "run", "undefined", "curves")

STAMPS = {
    "phantom": (
        "These results are on the built-in phantom: made-up images with made-up anomalies. They"
        " show that the software runs. They say nothing about real scans."
    ),
    "planted": (
        "The anomalies in this test set were planted into the scans by a program. How well real"
        " disease is found may be very different."
    ),
}


class Cell(NamedTuple):
    """One number as text. reason: why there is none, "" where there is one."""

    value: str
    interval: str = ""
    reason: str = ""


class Row(NamedTuple):
    metric: Metric
    cell: Cell
    chance: str


class Section(NamedTuple):
    """detail: for readers who want more than the main numbers."""

    title: str
    rows: list[Row]
    detail: bool = False


class Grid(NamedTuple):
    """A table with one line per name. rows: pairs of a name and as many cells as columns."""

    title: str
    columns: list[Metric]
    rows: list[tuple[str, list[Cell]]]


class Comparison(NamedTuple):
    """The method against one trivial bar on one metric. outcome: "behind", "unclear", "ahead"."""

    outcome: str
    sentence: str


def stamp_of(results):
    """-> (the stamp, the sentence that explains it); ("", "") for plain real data."""
    data = results.get("data", {})
    stamp = data.get("stamp") or ("phantom" if data.get("is_phantom") else "")
    if not stamp:
        return "", ""
    return stamp, STAMPS.get(stamp, f"The data of this run are marked '{stamp}'.")


def metric_named(key):
    """'pixel_ap' -> the metric 'Pixel AP'; an unknown key becomes a label in plain words."""
    if key in METRICS:
        return METRICS[key]
    level, _, name = key.partition("_")
    if level in LEVELS and name in METRICS:
        return METRICS[name]._replace(label=f"{level.capitalize()} {METRICS[name].label}")
    words = str(key).replace("_", " ").strip()
    return Metric(words[:1].upper() + words[1:])


def is_undefined(value):
    return value is None or (isinstance(value, numbers.Real) and math.isnan(value))


def is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def text_of(value):
    """Any value of the results as short text; numbers with three decimals."""
    if is_undefined(value):
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        # Three decimals would print a small error rate as nothing at all.
        return f"{value:.1e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {text_of(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(text_of(item) for item in value)
    return str(value)


def setting_text(value):
    """A setting of the run, all digits kept: 0.0003 must not become 3.0e-04."""
    if isinstance(value, float):
        return repr(float(value))  # a NumPy number would show its type
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting_text, value))
    return text_of(value)


def cell_of(values, key, undefined, path):
    value = values.get(key)
    if is_undefined(value):
        return Cell("n/a", reason=str(undefined.get(f"{path}.{key}") or "no reason recorded"))
    bounds = values.get(f"{key}_ci95")
    if not bounds or any(is_undefined(bound) for bound in bounds):
        return Cell(text_of(value))
    return Cell(text_of(value), f"[{text_of(bounds[0])}, {text_of(bounds[1])}]")


def sections_of(results):
    """All metrics outside the grids, one section per (nested) group, in the order of the file."""
    undefined = results.get("undefined", {})
    groups = {
        key: value
        for key, value in results.items()
        if isinstance(value, dict) and key not in FACTS and not key.startswith("by_")
    }
    sections = []
    for key, values in groups.items():
        sections += _nested_sections(key, values, undefined)
    loose = {key: value for key, value in results.items() if not isinstance(value, dict)}
    if loose:
        sections.append(
            Section("Other", [Row(metric_named(k), Cell(text_of(loose[k])), "") for k in loose])
        )
    return sections


def _nested_sections(path, values, undefined):
    rows, inner = [], []
    for key, value in values.items():
        if isinstance(value, dict):
            if not key.startswith("by_"):
                inner += _nested_sections(f"{path}.{key}", value, undefined)
        elif not key.endswith("_ci95"):
            metric = metric_named(key)
            chance = values.get("prevalence") if key == "ap" else metric.chance
            cell = cell_of(values, key, undefined, path)
            rows.append(Row(metric, cell, "" if is_undefined(chance) else text_of(chance)))
    title = metric_named(path.replace(".", ", ")).label
    detail = path.startswith("confidence.")
    return ([Section(title, rows, detail)] if rows else []) + inner


def grids_of(results):
    """One grid per key that starts with "by_", at any depth: by_kind, confidence.by_uncertainty."""
    return _nested_grids("", results, results.get("undefined", {}))


def _nested_grids(path, values, undefined):
    grids = []
    for key, value in values.items():
        if not isinstance(value, dict) or (not path and key in FACTS):
            continue
        whole = f"{path}.{key}" if path else key
        if not key.startswith("by_"):
            grids += _nested_grids(whole, value, undefined)
        elif value:
            title = metric_named(whole.replace(".", ", ")).label
            grids.append(_grid(title, value, undefined, whole))
    return grids


def bars_grid(results):
    """This run above the trivial bars, on the metrics the bars have; None without bars."""
    bars = results.get("bars")
    if not bars:
        return None
    run = {}
    for key in dict.fromkeys(key for values in bars.values() for key in values):
        level, _, name = key.partition("_")
        own = results.get(level) or {}
        if name in own:
            run[key], run[f"{key}_ci95"] = own[name], own.get(f"{name}_ci95")
    undefined = dict(results.get("undefined", {}))
    for key in run:
        level, _, name = key.partition("_")
        undefined.setdefault(f"bars.this run.{key}", undefined.get(f"{level}.{name}"))
    return _grid("Trivial bars", {"this run": run, **bars}, undefined, "bars")


def _grid(title, table, undefined, path):
    keys = dict.fromkeys(key for values in table.values() for key in values)
    columns = [key for key in keys if not key.endswith("_ci95")]
    rows = [
        (name, [_grid_cell(values, key, undefined, f"{path}.{name}") for key in columns])
        for name, values in table.items()
    ]
    return Grid(title, [metric_named(key) for key in columns], rows)


def _grid_cell(values, key, undefined, path):
    # What a line never had is not undefined; that is None with a reason.
    return cell_of(values, key, undefined, path) if key in values else Cell("-")


def comparisons_of(results):
    """Says in words where a trivial bar beats this run, or is not clearly beaten by it."""
    found = []
    for bar, values in (results.get("bars") or {}).items():
        for key, theirs in values.items():
            level, _, name = key.partition("_")
            section = results.get(level) or {}
            ours, bounds = section.get(name), section.get(f"{name}_ci95")
            metric = metric_named(key)
            if not metric.better or not is_number(ours) or not is_number(theirs):
                continue
            if is_undefined(ours) or is_undefined(theirs):
                continue
            numbers_text = f"{text_of(theirs)} against {text_of(ours)}"
            if (theirs > ours) == (metric.better == "higher") and theirs != ours:
                outcome, verb = "behind", "beats this run"
            elif theirs == ours or (bounds and bounds[0] <= theirs <= bounds[1]):
                outcome, verb = "unclear", "is not clearly beaten by this run"
            else:
                outcome, verb = "ahead", "is beaten by this run"
            found.append(Comparison(outcome, f"{bar} {verb} on {metric.label}: {numbers_text}."))
    return found


def results_table(results):
    """The main results as aligned plain text for a terminal; report.html has all of them.

    Sections for readers who want more and all breakdowns but that by kind are left out.
    results: the dict of metrics.json. A metric that is undefined is shown as "n/a (reason)".
    Control characters in the text of the data (names of kinds, ...) are replaced, because a
    terminal would obey them.
    """
    stamp, sentence = stamp_of(results)
    name = results.get("data", {}).get("name", "unnamed data")
    blocks = [f"Results on {shown(name)}" + (f" [{stamp}]" if stamp else "")]
    if stamp:
        blocks.append(f"{stamp.upper()}: {sentence}")
    for section in sections_of(results):
        if not section.detail:
            head = (section.title, "value", "95% interval", "by chance")
            blocks.append(aligned([head, *map(_section_line, section.rows)]))
    shown_here = {key: results[key] for key in ("by_kind", "undefined") if key in results}
    for grid in [*grids_of(shown_here), bars_grid(results)]:
        if grid is not None:
            blocks.append(_grid_text(grid))
    for comparison in comparisons_of(results):
        if comparison.outcome != "ahead":
            blocks.append(f"Note: {shown(comparison.sentence)}")
    for key in ("threshold", "calibration"):
        facts = results.get(key)
        if facts:
            text = "; ".join(f"{fact} {setting_text(value)}" for fact, value in facts.items())
            blocks.append(f"{key.capitalize()}: {shown(text)}")
    return "\n\n".join(blocks)


def _section_line(row):
    if row.cell.reason:
        return (row.metric.label, f"n/a ({row.cell.reason})")
    return (row.metric.label, row.cell.value, row.cell.interval, row.chance)


def _grid_text(grid):
    head = (grid.title, *(column.label for column in grid.columns))
    lines = [(name, *(cell.value for cell in cells)) for name, cells in grid.rows]
    notes = [
        f"  {shown(name, 40)}, {shown(column.label, 40)}: n/a ({shown(cell.reason)})"
        for name, cells in grid.rows
        for column, cell in zip(grid.columns, cells, strict=True)
        if cell.reason
    ]
    return "\n".join([aligned([head, *lines]), *notes])


def aligned(lines):
    """First column left, the others right. A line of two is a label and a remark that may run
    past its column: reasons are long, and must not push the numbers apart."""
    lines = [(shown(line[0], 40), *(shown(text) for text in line[1:])) for line in lines]
    full = [line for line in lines if len(line) == len(lines[0])]
    label_width = max(len(line[0]) for line in lines)
    widths = [max(map(len, column)) for column in zip(*(line[1:] for line in full), strict=True)]
    rows = []
    for line in lines:
        if len(line) == len(lines[0]):
            cells = [text.rjust(width) for text, width in zip(line[1:], widths, strict=True)]
        else:
            word, _, rest = line[1].partition(" ")
            cells = [word.rjust(widths[0]) + " " + rest]
        rows.append("  ".join([line[0].ljust(label_width), *cells]).rstrip())
    return "\n".join(rows)


def shown(text, limit=400):
    """Text of the data without what a terminal would obey, and not endless."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return text if len(text) <= limit else text[: limit - 3] + "..."
