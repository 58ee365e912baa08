"""Evaluated runs side by side on the same cases, with paired differences.

python -m caal_jax.compare RUN RUN ... --output=compare.html

A run is the workdir of an evaluation, or what `python -m caal_jax.evaluate --predictions=...`
wrote about the maps of another tool.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

from caal_jax import files, metrics, report
from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.evaluate import case_cards, read_statistics
from caal_jax.summarise import IMAGE, POOLED, groups_of, statistics_of, summarise

MAX_RUNS = 6  # lines that colour-blind eyes can tell apart in one plot


@dataclasses.dataclass(frozen=True)
class Run:
    """An evaluated workdir. cases: its `CaseStatistics` by case id; facts: its metrics.json."""

    name: str
    cases: dict
    facts: dict


def compare(workdirs, output, *, num_resamples=1000, seed=0):
    """Compares two or more evaluated runs on the cases that all of them scored.

    Writes a page to `output` and its numbers to the same name with the suffix .json. Returns those:
    "runs", "num_cases", "notes", "metrics" {run: results as in metrics.json, on the common cases}
    and "differences" {run: {"pixel.ap": {value, ci95, p_value}}}, each run but the first minus the
    first, by a bootstrap in which both runs get the same patients.
    Raises: InputError if a folder holds no finished evaluation, if the runs share no case, or if a
    shared case has another truth in another run.
    """
    output = Path(output)
    if not 2 <= len(workdirs) <= MAX_RUNS:
        raise InputError(
            "runs",
            found=f"{len(workdirs)} of them",
            expected=f"2 to {MAX_RUNS} evaluated workdirs",
            remedy="Name them one after the other: python -m caal_jax.compare RUN RUN.",
        )
    runs = [read_run(path, name) for path, name in zip(workdirs, run_names(workdirs), strict=True)]
    common, notes = common_cases(runs)
    config = training_config()
    config.num_resamples, config.seed = num_resamples, seed
    cases = [[run.cases[case_id] for case_id in common] for run in runs]
    summaries = [summarise(config, own) for own in cases]
    found = {
        "runs": [run.name for run in runs],
        "num_cases": len(common),
        "notes": notes,
        "metrics": {run.name: results for run, (results, _) in zip(runs, summaries, strict=True)},
        "differences": {
            run.name: differences(cases[0], own, num_resamples=num_resamples, seed=seed)
            for run, own in zip(runs[1:], cases[1:], strict=True)
        },
    }
    report.write_comparison(
        output,
        found,
        curves={run.name: curves for run, (_, curves) in zip(runs, summaries, strict=True)},
        cards={run.name: case_cards(own) for run, own in zip(runs, cases, strict=True)},
        facts={run.name: run.facts for run in runs},
    )
    text = json.dumps(found, indent=1, allow_nan=False)
    files.write_text(output.with_suffix(".json"), text)
    return found


def read_run(workdir, name):
    """The `Run` in a workdir. Raises `InputError`."""
    workdir = Path(workdir)
    cases = {case.case_id: case for case in read_statistics(workdir)}
    try:
        facts = json.loads((workdir / "metrics.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            workdir,
            found=f"no readable metrics.json ({error})",
            expected="the workdir of an evaluated run",
            remedy="Evaluate that run again.",
        ) from error
    return Run(name, cases, facts)


def run_names(workdirs):
    """The last part of each path; those that are alike get a number."""
    found = []
    for path in workdirs:
        stem, number = Path(path).resolve().name, 2
        name = stem
        while name in found:
            name, number = f"{stem} ({number})", number + 1
        found.append(name)
    return found


def common_cases(runs):
    """(ids of the cases that all runs scored, notes). Raises `InputError` as `compare` says."""
    first = runs[0]
    common = [key for key in first.cases if all(key in run.cases for run in runs)]
    if not common:
        raise InputError(
            " and ".join(run.name for run in runs),
            found="no case that all of them scored",
            expected="runs on the same test cases",
            remedy="Evaluate them on one data set.",
        )
    for run in runs[1:]:
        for key in common:
            if _truth(run.cases[key]) != _truth(first.cases[key]):
                raise InputError(
                    f"case {key}",
                    found=f"another truth in {run.name} than in {first.name}",
                    expected="runs on the same test cases",
                    remedy="Evaluate them on one data set, with the same masks.",
                )
    notes = [
        f"{len(run.cases) - len(common)} cases of {run.name} are left out: not every run has them."
        for run in runs
        if len(run.cases) > len(common)
    ]
    return common, notes


def _truth(case):
    """What has to agree: label, and numbers of normal and abnormal pixels."""
    counts = None if case.rank is None else case.rank[:, :2].sum(0).tolist()
    return case.label, counts


def differences(first, second, *, num_resamples, seed):
    """{"pixel.ap": {"value", "ci95", "p_value"}} of two lists of `CaseStatistics` of the same cases
    in the same order, second minus first; metrics that either does not define are left out."""
    found = {}
    resampling = {"num_resamples": num_resamples, "seed": seed}
    for section, table in POOLED.items():
        for name, (field, metric) in table.items():
            pairs = [
                (a, b)
                for a, b in zip(first, second, strict=True)
                if getattr(a, field) is not None and getattr(b, field) is not None
            ]
            if pairs:
                one, two = zip(*pairs, strict=True)
                found[f"{section}.{name}"] = metrics.paired_bootstrap(
                    statistics_of(two, field),
                    statistics_of(one, field),
                    metric,
                    **resampling,
                    **groups_of(one),
                )
    labels = [case.label for case in first]
    for name, (_, metric) in IMAGE.items():
        if len(set(labels)) == 2:
            found[f"image.{name}"] = metrics.paired_image_bootstrap(
                [case.score for case in second],
                [case.score for case in first],
                labels,
                metric,
                **resampling,
                clusters=groups_of(first)["clusters"],
            )
    return {
        # Differences of rounding alone are none.
        name: {
            "value": round(one.value, 12),
            "ci95": [round(one.low, 12), round(one.high, 12)],
            "p_value": one.p_value,
        }
        for name, one in found.items()
        if np.isfinite([one.value, one.low]).all()
    }


def main(argv):
    try:
        found = compare(argv[1:], flags.FLAGS.output)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(report.comparison_table(found))
    print(f"comparison: {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "compare.html", "The page; a JSON file appears beside it.")
    app.run(main)
