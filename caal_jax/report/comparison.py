"""compare.html: several runs on the same cases; one file that opens offline and runs no script."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from caal_jax.files import folder, write_bytes
from caal_jax.report import tables
from caal_jax.report.figures import PLOTS, draw_overlaid, inline_svg
from caal_jax.report.gallery import (
    ANOMALY_COLOURS,
    anomaly_picture,
    colour_bar,
    image_picture,
    outcome_of,
    png_data_uri,
    slice_text,
)
from caal_jax.report.page import template
from caal_jax.report.sprites import data_uri

MAX_CASES = 60


class DifferenceCell(NamedTuple):
    """outcome: "better" or "worse" where the interval leaves out zero, else ""."""

    value: str
    interval: str = ""
    p_value: str = ""
    outcome: str = ""


class ComparedRow(NamedTuple):
    label: str
    better: str
    cells: list[tables.Cell]
    differences: list[DifferenceCell]


def write_comparison(path, found, *, curves, cards, facts):
    """Writes the page of a comparison.

    found: as `caal_jax.compare.compare` returns it. curves, cards, facts: by run, its curves on the
    common cases, its `Card`s of them in one order, and its metrics.json. Runs on made-up data
    (facts[run]["data"]["stamp"]) are stamped.
    """
    path = Path(path)
    stamp, sentence = next(filter(any, map(tables.stamp_of, facts.values())), ("", ""))
    drawn = []
    for plot in PLOTS:
        of_runs = {run: lines.get(plot.name) for run, lines in curves.items()}
        svg = draw_overlaid(plot, of_runs, stamp)
        if svg is not None:
            drawn.append((plot, Markup(inline_svg(svg, plot.name))))
    first = next(iter(cards.values()))
    page = template("compare.html.jinja").render(
        runs=[{"name": name} for name in found["runs"]],
        num_cases=found["num_cases"],
        num_abnormal=sum(card.label for card in first),
        notes=found["notes"],
        stamp=stamp,
        stamp_sentence=sentence,
        rows=compared_rows(found),
        drawn=drawn,
        cases=_sides(cards),
        bar=png_data_uri(colour_bar(ANOMALY_COLOURS)),
        settings=_settings(facts),
    )
    folder(path.parent)
    write_bytes(path, page.encode("utf-8", "replace"))


def comparison_table(found):
    """The rows of the page as aligned plain text."""
    runs = found["runs"]
    lines = [("", *runs, *(f"{run} - {runs[0]}" for run in runs[1:]))]
    for row in compared_rows(found):
        cells = [f"{cell.value} {cell.interval}".strip() for cell in row.cells]
        for cell in row.differences:
            p_value = f" p={cell.p_value}" if cell.p_value else ""
            cells.append(f"{cell.value} {cell.interval}{p_value}".strip())
        lines.append((row.label, *cells))
    notes = [f"Note: {tables.shown(note)}" for note in found["notes"]]
    return "\n".join([tables.aligned(lines), *notes])


def compared_rows(found):
    """A `ComparedRow` for each metric that has a paired difference or a value in some run."""
    results = list(found["metrics"].values())
    rows = []
    for section in ("pixel", "image", "object", "confidence"):
        names = dict.fromkeys(name for one in results for name in one.get(section, {}))
        for name in names:
            path = f"{section}.{name}"
            differences = [of_run.get(path) for of_run in found["differences"].values()]
            if not any(differences):
                continue
            metric = tables.metric_named(name)
            level = "" if section == "confidence" else f"{section.capitalize()} "
            cells = [
                tables.cell_of(one.get(section, {}), name, one.get("undefined", {}), section)
                for one in results
            ]
            rows.append(
                ComparedRow(
                    f"{level}{metric.label}",
                    metric.better,
                    cells,
                    [_difference_cell(one, metric.better) for one in differences],
                )
            )
    return rows


def _difference_cell(difference, better):
    if difference is None:
        return DifferenceCell("n/a")
    value, (low, high) = difference["value"], difference["ci95"]
    outcome = ""
    if better and (low > 0 or high < 0):
        outcome = "better" if (low > 0) == (better == "higher") else "worse"
    return DifferenceCell(
        _signed(value),
        f"[{_signed(low)}, {_signed(high)}]",
        f"{difference['p_value']:.2g}",
        outcome,
    )


def _signed(value):
    text = tables.text_of(value)
    return text if value < 0 else f"+{text}"


def _sides(cards):
    """The cases on which the runs differ most: the picture once, and each run's map."""
    names, columns = list(cards), list(zip(*cards.values(), strict=True))

    def spread(column):
        errors = [card.error for card in column if card.error is not None]
        return np.ptp(errors) if errors else 0.0

    found = []
    for column in sorted(columns, key=spread, reverse=True)[:MAX_CASES]:
        first = column[0]
        pictured = next((card for card in column if image_picture(card) is not None), None)
        sides = []
        if pictured is not None:
            text = slice_text(pictured.sprites.key_slice, pictured.sprites.depth)
            title = "Image" if pictured.sprites.key.truth is None else "Image, truth outlined"
            picture = data_uri(image_picture(pictured))
            sides.append({"title": title, "detail": text, "source": picture})
        for name, card in zip(names, column, strict=True):
            text = slice_text(card.sprites.key_slice, card.sprites.depth)
            detail = f"score {card.score:.3f}, {outcome_of(card)}" + (f", {text}" if text else "")
            picture = data_uri(anomaly_picture(card))
            sides.append({"title": name, "detail": detail, "source": picture})
        truth = "abnormal" if first.label else "normal"
        found.append({"name": first.case_id, "kind": first.kind, "truth": truth, "sides": sides})
    return found


def _settings(facts):
    """[(name, [text of each run])] of the settings and facts in which the runs differ."""
    tables_of_runs = []
    for one in facts.values():
        run = one.get("run", {})
        config = run.get("config") or {}
        shown = {f"config.{name}": value for name, value in config.items()}
        shown |= {name: run.get(name) for name in ("device", "git_commit", "wall_seconds")}
        shown |= {f"data.{k}": one.get("data", {}).get(k) for k in ("name", "num_train")}
        tables_of_runs.append({name: tables.setting_text(value) for name, value in shown.items()})
    names = dict.fromkeys(name for table in tables_of_runs for name in table)
    rows = [(name, [table.get(name, "-") for table in tables_of_runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
