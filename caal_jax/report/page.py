"""report.html: one file that opens offline, loads nothing and runs no script but its own."""

import base64
import hashlib
import importlib.resources
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from caal_jax.files import write_bytes
from caal_jax.report import tables
from caal_jax.report.figures import PLOTS, draw_plot, inline_svg
from caal_jax.report.gallery import (
    ANOMALY_COLOURS,
    OUTLINE_RGB,
    UNCERTAINTY_COLOURS,
    colour_bar,
    coloured,
    outcome_of,
    panels_of,
    png_data_uri,
    stamped,
    thumbnail,
    uncertainty_limit,
)
from caal_jax.report.sprites import UNCERTAINTY_MAX, data_uri

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
    "random": ("Random cases", "Drawn by chance from the other cases."),
}
FEW_CASES = 30
MAX_CARDS = 200  # with their pictures the page stays below 20 MB


class Drawn(NamedTuple):
    """A plot on the page. svg: markup, or None with the reason why there is none."""

    plot: object
    svg: Markup | None
    reason: str


class Case(NamedTuple):
    item: object
    pictures: list[dict]
    outcome: str


class CardOnPage(NamedTuple):
    card: object
    thumbnail: str
    outcome: str
    tags: str


def write_report(workdir, *, results, curves, history, gallery, cards=()):
    """Writes `report.html` and `figures/` (SVG and PNG) into `workdir`; returns the page's path.

    results: the dict of metrics.json: groups of metrics ("pixel", "image", "confidence", ...),
        with intervals as `<name>_ci95`, None where a metric is undefined and the reason in
        results["undefined"]["pixel.ap"]; tables "by_kind" (any "by_...") and "bars"; facts "data",
        "threshold", "calibration", "run". Every part may be missing; unknown metrics are shown
        under their own name.
    curves: "precision_recall" {recall, precision, prevalence}, "roc" {false_positive_rate,
        true_positive_rate}, "froc" {false_positives, sensitivity}, "reliability" {confidence,
        accuracy, count, low, high}, "risk_coverage" {coverage, risk, random, oracle},
        "score_distribution" {normal, abnormal, threshold}; most may hold a "band" {x, low, high};
        the page says why one is missing.
    history: the dicts of metrics.jsonl: step, loss (one per member), maybe validation_loss.
    gallery: `GalleryItem`s, shown by their `why`. cards: `Card`s of all cases, to be sorted and
        looked through slice by slice; of more than MAX_CARDS the worst and a random share are
        shown. All uncertainty maps share one colour scale.
    Made-up data (results["data"]["stamp"]) are stamped on the page and on every figure; maps of
    another tool (its name in results["data"]["maps"]) are not explained as ours.
    """
    workdir = Path(workdir)
    (workdir / "figures").mkdir(parents=True, exist_ok=True)
    data = results.get("data", {})
    stamp, stamp_sentence = tables.stamp_of(results)
    drawn = _draw_plots(workdir / "figures", results, {**curves, "training_curve": history}, stamp)
    comparisons = tables.comparisons_of(results)
    shown = chosen_cards(cards)
    peaks = [card.sprites.uncertainty_peak for card in shown]
    maps = [item.uncertainty_map for item in gallery if item.uncertainty_map is not None]
    limit = uncertainty_limit([*peaks, *(np.quantile(one, 0.999) for one in maps)])
    page = template("report.html.jinja").render(
        name=data.get("name", "unnamed data"),
        maps=data.get("maps", ""),
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
        groups=_gallery_groups(gallery, limit, stamp),
        cards=[_card_on_page(card) for card in shown],
        num_cards=len(cards),
        pictures=[_pictures(card) for card in shown],
        scales=_scales(limit),
        **page_script(),
        facts=_facts(results),
        config=_settings(results.get("run", {}).get("config") or {}),
    )
    path = workdir / "report.html"
    write_bytes(path, page.encode("utf-8", "replace"))
    return path


def template(name):
    """A template of this package; every value put into it is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_text),
    )
    return environment.get_template(name)


def _text(name):
    return importlib.resources.files("caal_jax.report").joinpath(name).read_text("utf-8")


def page_script():
    """{"script", "script_hash"}: the page's own script, the only one its policy lets run."""
    script = _text("browser.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "script_hash": digest}


def chosen_cards(cards):
    """At most MAX_CARDS cards in their order: if there are more, the half with the largest errors
    and a random half of the others."""
    if len(cards) <= MAX_CARDS:
        return list(cards)
    order = sorted(range(len(cards)), key=lambda i: -(cards[i].error or 0))
    worst, rest = order[: MAX_CARDS // 2], order[MAX_CARDS // 2 :]
    drawn = np.random.default_rng(0).permutation(rest)[: MAX_CARDS - len(worst)]
    return [cards[i] for i in sorted([*worst, *drawn])]


def _card_on_page(card):
    outcome = outcome_of(card)
    tags = [outcome.partition(":")[0], {0: "normal", 1: "abnormal"}.get(card.label, "")]
    tags.append("abstain" if card.verdict == "abstain" else "")
    return CardOnPage(card, data_uri(thumbnail(card)), outcome, " ".join(filter(None, tags)))


def _pictures(card):
    """What the script needs to paint a card, as JSON: layers of the telling slice or of all."""
    sprites = card.sprites
    layers = sprites.stack or sprites.key
    return {
        "height": sprites.height,
        "width": sprites.width,
        "columns": sprites.columns,
        "slices": sprites.slices,
        "start": sprites.key_tile,
        "depth": sprites.depth,
        "layers": {
            name: data_uri(code) for name, code in layers._asdict().items() if code is not None
        },
    }


def _scales(limit):
    """Colours for the 256 stored levels of each map, as JSON: the fixed scales of the page."""
    levels = np.linspace(0, 1, 256)[None]
    doubt = levels**2 * UNCERTAINTY_MAX
    return {
        "anomaly": {
            "colours": coloured(levels, ANOMALY_COLOURS, 1.0)[0].tolist(),
            "shares": levels[0].round(4).tolist(),
            "bar": png_data_uri(colour_bar(ANOMALY_COLOURS)),
            "high": "1",
        },
        "uncertainty": {
            "colours": coloured(doubt, UNCERTAINTY_COLOURS, limit)[0].tolist(),
            "shares": np.minimum(doubt[0] / limit, 1).round(4).tolist(),
            "bar": png_data_uri(colour_bar(UNCERTAINTY_COLOURS)),
            "high": f"≥ {limit:g}",
        },
        "outline": OUTLINE_RGB,
    }


def _draw_plots(folder, results, curves, stamp):
    undefined = results.get("undefined", {})
    drawn = []
    for plot in PLOTS:
        found = draw_plot(plot, curves.get(plot.name), stamp)
        paths = [folder / f"{plot.name}{suffix}" for suffix in (".svg", ".png")]
        if found is None:
            # A figure of an earlier run must not stand in for one that could not be drawn.
            for path in paths:
                path.unlink(missing_ok=True)
            reason = undefined.get(plot.metric) or "this run recorded no data for it"
            drawn.append(Drawn(plot, None, str(reason)))
        else:
            for path, data in zip(paths, found, strict=True):
                write_bytes(path, data)
            drawn.append(Drawn(plot, Markup(inline_svg(found[0], plot.name)), ""))
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
    image = results.get("image") or {}
    if image.get("auroc") == 0.5 and image.get("auroc_ci95") == [0.5, 0.5]:
        found.append("Every case has the same score, which tells nothing: too little was learnt.")
    config = results.get("run", {}).get("config") or {}
    if config.get("num_members") == 1:
        found.append("With one member there is no disagreement from which to tell uncertainty.")
    if results.get("undefined"):
        found.append("Some metrics are undefined here; each is marked with its reason.")
    return found


def _gallery_groups(gallery, limit, stamp):
    """-> [(heading, remark, cases)]: best, worst, random, then any other reason."""
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
    return Case(item, pictures, outcome_of(item))


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
