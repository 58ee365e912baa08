"""run_study(study, output): the plan, then cell after cell, then the table of all that is done."""

import itertools
import json
import time

import jax
import numpy as np

from caal_jax import files
from caal_jax.baselines.reconstruction import pca_residual
from caal_jax.baselines.trivial import equalised_intensity, mean_template, raw_intensity
from caal_jax.case_statistics import CaseStatistics, add_ranking
from caal_jax.data import load_dataset
from caal_jax.data.letterbox import unletterbox
from caal_jax.errors import InputError
from caal_jax.evaluate import bar_input, evaluate, read_statistics, with_truth
from caal_jax.localise import FinishedRun, case_stack, map_score
from caal_jax.study.grid import cell_config, first_cells, further_cells, write_plan
from caal_jax.study.honest import checks
from caal_jax.study.page import markdown, write_page
from caal_jax.study.results import table_rows
from caal_jax.train import build_bank, train
from caal_jax.windows import read_patch_size

BARS = (mean_template, raw_intensity, equalised_intensity, pca_residual)


def run_study(study, output, *, max_cells=None):
    """Runs what is left of a study, then writes study.json, study.md and study.html.

    study: a training config with the fields of `grid.study_config`. max_cells: how many cells this
    call may run; 0 only writes what is known so far. A cell that another process works on is left
    to it. Returns what study.json says.
    Raises: InputError for another plan in the folder, and for data that cannot be read.
    """
    if read_patch_size(study):
        raise InputError(
            "config.patch_size",
            found=repr(study.patch_size),
            expected="an empty one: a study's tasks and bars are of slices",
            remedy="Leave it out.",
        )
    output = files.folder(output)
    write_plan(study, output)
    bars = bar_cases(study, load_dataset(study), output)
    budget = itertools.count(1)

    def run(cells):
        for number, cell in enumerate(cells):
            folder = output / "cells" / cell.name
            if (folder / "checks.json").is_file():
                continue
            if max_cells is not None and next(budget) > max_cells:
                return
            print(f"cell {number + 1} of {len(cells)}: {cell.name}", flush=True)
            run_cell(cell_config(study, cell), folder)
            # The programs of a cell are some 2300 pieces of memory; Linux grants 65530.
            jax.clear_caches()

    first = first_cells(study)
    run(first)
    if all((output / "cells" / cell.name / "checks.json").is_file() for cell in first):
        best = best_tasks(study, output)
        print(f"best tasks on planted anomalies: {', '.join(best)}", flush=True)
        run(further_cells(study, best))
    return write_results(study, output, bars)


def run_cell(config, folder):
    """Trains, evaluates and checks one cell, unless another process is at it."""
    files.folder(folder)
    try:
        with files.lock(folder):
            began = time.monotonic()
            dataset = load_dataset(config)
            train(config, folder / "run", dataset)
            results = evaluate(config, folder / "run", dataset)
            cases = read_statistics(folder / "run")
            scores = {case.case_id: (case.score, case.label) for case in cases}
            found = checks(FinishedRun.load(folder / "run"), dataset, scores)
            found["seconds"] = round(time.monotonic() - began, 1)
            files.write_text(folder / "checks.json", json.dumps(found, indent=1))
    except InputError as error:
        if "another process" not in str(error):
            raise
        print(f"skipped: {error}", flush=True)
        return
    print(
        f"  pixel AP {results['pixel']['ap']}, planted {found['planted']['ap']:.3f}, "
        f"{found['seconds']:.0f} s",
        flush=True,
    )


def best_tasks(study, output):
    """The names of the best tasks by `grid.RULE`, best first."""
    ranks = {}
    for cell in first_cells(study):
        found = json.loads((output / "cells" / cell.name / "checks.json").read_text())
        ranks.setdefault(cell.variant.task, []).append(found["planted"]["ap"] or 0.0)
    return sorted(ranks, key=lambda task: -np.mean(ranks[task]))[: study.num_best]


def bar_cases(config, dataset, output):
    """{name: {None: `CaseStatistics` of the test cases}} of the bars, learnt from the training
    images; cases are in the order of their ids, and a bar is of no seed."""
    bank = build_bank(config, dataset.train, output / "bars")
    channels = bank.images.shape[-1]
    images, _ = bar_input(bank.images, bank.low, bank.high, config.foreground_threshold)
    states = {bar.name: jax.jit(bar.fit)(images) for bar in BARS}
    found = {bar.name: [] for bar in BARS}
    for entry in dataset.test:
        try:
            case = with_truth(entry.load())
            stack = case_stack(case, image_size=config.image_size, channels=channels)
        except InputError:
            continue  # the cells' own reports count it
        image, inside = bar_input(stack.raw, stack.low, stack.high, config.foreground_threshold)
        for bar in BARS:
            squares = np.asarray(bar.predict(states[bar.name], image, inside))
            statistics = CaseStatistics(
                case_id=case.case_id,
                patient=case.patient or case.case_id,
                kind=case.kind,
                label=int(case.label if case.label is not None else case.mask.any()),
                score=map_score(squares, np.asarray(inside), config),
                has_mask=case.mask is not None,
            )
            if case.mask is not None:
                native = np.stack([unletterbox(one, stack.place) for one in squares])
                native = native if case.is_volume else native[0]
                # The template's distance has no upper end; this keeps the order.
                add_ranking(statistics, native / (1 + native), case.mask.astype(bool))
            found[bar.name].append(statistics)
    return {name: {None: _in_order(cases)} for name, cases in found.items()}


def _in_order(cases):
    return sorted(cases, key=lambda case: case.case_id)


def write_results(study, output, bars):
    """study.json, study.md and study.html from the cells that are done; what study.json says."""
    variants, checked, results = {}, {}, {}
    cells = first_cells(study)
    if all((output / "cells" / cell.name / "checks.json").is_file() for cell in cells):
        cells = cells + further_cells(study, best_tasks(study, output))
    for cell in cells:
        folder = output / "cells" / cell.name
        if (folder / "checks.json").is_file():
            checked[cell] = json.loads((folder / "checks.json").read_text())
            results[cell] = json.loads((folder / "run" / "metrics.json").read_text())
            cases = _in_order(read_statistics(folder / "run"))
            variants.setdefault(cell.variant, {})[cell.seed] = cases
    found = {"plan": json.loads((output / "plan.json").read_text()), "num_cells": len(cells)}
    found["num_done"] = len(checked)
    # A p-value is not below 2 / resamples, and here it is multiplied by some hundred comparisons.
    found["rows"] = table_rows(variants, bars, 4 * study.num_resamples)
    for row in found["rows"]:
        mine = [cell for cell in checked if cell.variant.label == row["name"]]
        row |= _checks_of([checked[cell] for cell in mine])
        row["confidence"] = _confidence_of([results[cell]["confidence"] for cell in mine])
    data = next((one["data"] for one in results.values()), {})
    found["data"] = {key: data.get(key) for key in ("name", "stamp", "num_train", "num_test")}
    found["data"]["prevalence"] = next(
        (one["pixel"].get("prevalence") for one in results.values()), None
    )
    found["seconds"] = sum(one["seconds"] for one in checked.values())
    files.write_text(output / "study.json", json.dumps(found, indent=1))
    files.write_text(output / "study.md", markdown(found))
    write_page(output / "study.html", found)
    return found


def _checks_of(found):
    """The checks of a row's cells: mean planted AP, every null AUROC, the worst leak."""
    if not found:
        return {}
    nulls = [one["null"]["auroc"] for one in found if one["null"]["auroc"] is not None]
    leaks = [one["independence"] for one in found if one["independence"] is not None]
    planted = [one["planted"]["ap"] for one in found if one["planted"]["ap"] is not None]
    return {
        "planted_ap": float(np.mean(planted)) if planted else None,
        "null_auroc": nulls,
        "leak": max(leaks, default=None),
        "seconds": float(np.mean([one["seconds"] for one in found])),
    }


def _confidence_of(found):
    """Means over seeds of the confidence metrics that all runs define."""
    names = ("ece", "brier", "aurc", "error_auroc", "error_auroc_epistemic")
    return {
        name: float(np.mean([one[name] for one in found]))
        for name in names
        if found and all(one.get(name) is not None for one in found)
    }
