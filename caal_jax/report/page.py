"""report.html: one file that opens offline, runs no script and loads nothing."""

import importlib.resources
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from caal_jax.files import write_bytes
from caal_jax.report import tables
from caal_jax.report.figures import PLOTS, draw_plot, inline_svg
from caal_jax.report.gallery import (
    colour_bar,
    panels_of,
    png_data_uri,
    stamped,
    uncertainty_limit,
)

# The numbers a reader should meet first: where, which image, how honest, how self-aware.
HEADLINES = (
    ("pixel", "ap", "Where is it abnormal?"),
    ("image", "auroc", "Which images are abnormal?"),
    ("confidence", "ece", "Are the probabilities honest?"),
    ("confidence", "error_auroc", "Does it know when it errs?"),
)
GROUPS = {
    "best": ("Best cases", "What it looks like when the method works."),
    "worst": ("Worst cases", "Shown on purpose: this is how the method fails."),
    "random": ("Random cases", "Drawn without looking at the result: what to expect."),
}
FEW_CASES = 30


class Drawn(NamedTuple):
    """A plot on the page. svg: markup, or None with the reason why there is none."""

    plot: object
    svg: Markup | None
    reason: str


class Case(NamedTuple):
    item: object
    pictures: list[dict]
    outcome: str


def write_report(workdir, *, results, curves, history, gallery):
    """Writes `report.html` and `figures/*.svg` into `workdir`; returns the path of the page.

    results: the dict of metrics.json: groups of metrics ("pixel", "image", "confidence", ...),
        with intervals as `<name>_ci95`, None where a metric is undefined and the reason in
        results["undefined"]["pixel.ap"]; tables "by_kind" (any "by_...") and "bars"; facts "data",
        "threshold", "calibration", "run". Every part may be missing; unknown metrics are shown
        under their own name.
    curves: "precision_recall" {recall, precision, prevalence}, "reliability" {confidence,
        accuracy, count}, "risk_coverage" {coverage, risk, random, oracle}, "score_distribution"
        {normal, abnormal, threshold}; the page says why one is missing.
    history: the dicts of metrics.jsonl: step, loss (one per member), maybe validation_loss.
    gallery: `GalleryItem`s, shown by their `why`; their uncertainty maps share one colour scale.
    Made-up data (results["data"]["stamp"]) are stamped on the page and on every figure.
    """
    workdir = Path(workdir)
    (workdir / "figures").mkdir(parents=True, exist_ok=True)
    data = results.get("data", {})
    stamp, stamp_sentence = tables.stamp_of(results)
    drawn = _draw_plots(workdir / "figures", results, {**curves, "training_curve": history}, stamp)
    comparisons = tables.comparisons_of(results)
    page = _template().render(
        name=data.get("name", "unnamed data"),
        notes=data.get("notes", []),
        stamp=stamp,
        stamp_sentence=stamp_sentence,
        headlines=_headlines(results),
        cautions=_cautions(results),
        sections=tables.sections_of(results),
        grids=tables.grids_of(results),
        bars=tables.bars_grid(results),
        lost=[comparison for comparison in comparisons if comparison.outcome != "ahead"],
        num_won=sum(comparison.outcome == "ahead" for comparison in comparisons),
        drawn=drawn,
        groups=_gallery_groups(gallery, stamp),
        facts=_facts(results),
        config=_settings(results.get("run", {}).get("config") or {}),
    )
    path = workdir / "report.html"
    write_bytes(path, page.encode("utf-8", "replace"))
    return path


def _template():
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files("caal_jax.report").joinpath("report.html.jinja")
    return environment.from_string(source.read_text("utf-8"))


def _draw_plots(folder, results, curves, stamp):
    undefined = results.get("undefined", {})
    drawn = []
    for plot in PLOTS:
        svg = draw_plot(plot, curves.get(plot.name), stamp)
        path = folder / f"{plot.name}.svg"
        if svg is None:
            # A figure of an earlier run must not stand in for one that could not be drawn.
            path.unlink(missing_ok=True)
            reason = undefined.get(plot.metric) or "this run recorded no data for it"
            drawn.append(Drawn(plot, None, str(reason)))
        else:
            write_bytes(path, svg)
            drawn.append(Drawn(plot, Markup(inline_svg(svg, plot.name)), ""))
    return drawn


def _headlines(results):
    undefined = results.get("undefined", {})
    found = []
    for level, name, question in HEADLINES:
        values = results.get(level, {})
        if name in values:
            metric = tables.metric_named(f"{level}_{name}")
            if level == "confidence":
                metric = tables.metric_named(name)
            chance = values.get("prevalence") if name == "ap" else metric.chance
            found.append(
                {
                    "question": question,
                    "metric": metric,
                    "cell": tables.cell_of(values, name, undefined, level),
                    "chance": "" if tables.is_undefined(chance) else tables.text_of(chance),
                }
            )
    return found


def _cautions(results):
    """What speaks against trusting these very numbers, one sentence each."""
    found = []
    num_test = results.get("data", {}).get("num_test")
    if tables.is_number(num_test) and num_test < FEW_CASES:
        found.append(f"Only {num_test} test cases: even the intervals are uncertain.")
    outcomes = [comparison.outcome for comparison in tables.comparisons_of(results)]
    if "behind" in outcomes:
        found.append("A bar that learns nothing beats this run on at least one metric: see below.")
    elif "unclear" in outcomes:
        found.append("A bar that learns nothing is within this run's interval: see below.")
    config = results.get("run", {}).get("config") or {}
    if config.get("num_members") == 1:
        found.append("With one member there is no disagreement from which to tell uncertainty.")
    if results.get("undefined"):
        found.append("Some metrics are undefined here; each is marked with its reason.")
    return found


def _gallery_groups(gallery, stamp):
    """-> [(heading, remark, cases)]: best, worst, random, then any other reason."""
    limit = uncertainty_limit(gallery)
    reasons = [*GROUPS, *(item.why for item in gallery if item.why not in GROUPS)]
    groups = []
    for why in dict.fromkeys(reasons):
        cases = [_case(item, limit, stamp) for item in gallery if item.why == why]
        heading, remark = GROUPS.get(why, (why.capitalize() or "Cases", ""))
        if cases:
            groups.append((heading, remark, cases))
    return groups


def _case(item, limit, stamp):
    pictures = []
    for panel in panels_of(item, limit):
        rgb = stamped(panel.rgb, stamp) if stamp else panel.rgb
        pictures.append(
            {
                "title": panel.title,
                "source": png_data_uri(rgb),
                "bar": png_data_uri(colour_bar(panel.colours)) if panel.colours else "",
                "high": panel.high,
                "height": rgb.shape[0],
                "width": rgb.shape[1],
            }
        )
    truth = {0: "normal", 1: "abnormal"}.get(item.label)
    if truth is None:
        outcome = "truth unknown"
    elif item.verdict not in ("normal", "abnormal"):
        outcome = f"no decision; truly {truth}"
    else:
        outcome = "correct" if item.verdict == truth else f"wrong: truly {truth}"
    return Case(item, pictures, outcome)


def _facts(results):
    """-> [(heading, [(label, text)])] for the parts that are not metrics; config comes apart."""
    run = {key: value for key, value in results.get("run", {}).items() if key != "config"}
    if tables.is_number(run.get("wall_seconds")):
        minutes, seconds = divmod(round(run["wall_seconds"]), 60)
        run["wall_seconds"] = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    data = {k: v for k, v in results.get("data", {}).items() if k not in ("name", "notes")}
    groups = {
        "Decision threshold": results.get("threshold", {}),
        "Calibration": results.get("calibration", {}),
        "Data": data,
        "Run": run,
    }
    return [(heading, _settings(facts)) for heading, facts in groups.items() if facts]


def _settings(facts):
    return [(tables.metric_named(k).label, tables.setting_text(v)) for k, v in facts.items()]
