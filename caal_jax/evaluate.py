"""evaluate(config, workdir, dataset): maps, metrics and report for the test split.

As a binary it scores maps that any tool made:
python -m caal_jax.evaluate --predictions=DIR --truth=DIR --output=DIR
"""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from tqdm import tqdm

from caal_jax import files, report
from caal_jax.baselines.trivial import equalised_intensity, raw_intensity
from caal_jax.case_statistics import LN2, CaseStatistics, case_statistics
from caal_jax.confidence_results import REGION_COLUMNS, region_rows
from caal_jax.data.fingerprint import Seen, fingerprint
from caal_jax.data.writers import csv_text, write_map
from caal_jax.errors import InputError
from caal_jax.localise import FinishedRun, case_stack, map_score
from caal_jax.preprocess import foreground, rescale
from caal_jax.report.sprites import case_budget_bytes, make_sprites
from caal_jax.summarise import summarise
from caal_jax.windows import read_patch_size

BARS = (raw_intensity, equalised_intensity)
VERSIONS = ("caal_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def evaluate(config, workdir, dataset):
    """Scores the test split of a data set with a finished run.

    Writes predictions/ (maps in the cases' geometry, statistics/ for later comparisons, and
    scores.csv), metrics.json, figures/ and report.html into the workdir. Returns the results, as
    in metrics.json. Cases that cannot be read are skipped and counted in the report. An
    evaluation that was interrupted goes on where it stopped.
    """
    began = time.monotonic()
    workdir = Path(workdir)
    run = FinishedRun.load(workdir)
    maps = files.folder(workdir / "predictions")
    unfinished = Unfinished(maps / "statistics", of_run=_fingerprint(workdir, dataset))
    cases, skipped = [], []
    names = files.distinct_names([entry.case_id for entry in dataset.test])
    budget = case_budget_bytes(len(names))
    entries = zip(names, tqdm(dataset.test, desc="evaluating", unit="case"), strict=True)
    for name, entry in entries:
        found = unfinished.load(name)
        if found is None:
            try:
                case = with_truth(entry.load())
                prediction = run.predict(case)
            except InputError as error:
                skipped.append(f"{entry.case_id} ({error})")
                continue
            write_maps(maps / name, prediction, case)
            found = case_statistics(
                case, prediction, bar_maps(run, case), score_fraction=run.config.score_fraction
            )
            found.fingerprint = fingerprint(case.image)
            found.sprites = make_sprites(
                prediction.image,
                case.mask,
                prediction.anomaly,
                prediction.epistemic,
                budget_bytes=budget,
            )
            unfinished.save(name, found)
        cases.append(found)
    files.write_text(maps / "scores.csv", scores_csv(cases))
    history = read_history(workdir)
    notes = [*dataset.notes, *json.loads((workdir / "training.json").read_text())["notes"]]
    if skipped:
        notes.append(f"{len(skipped)} test cases were skipped, the first being {skipped[0]}.")
    notes += leaks(workdir, cases)
    rows = [row for case in cases for row in region_rows(case.case_id, case.found_regions or ())]
    files.write_text(maps / "regions.csv", csv_text(REGION_COLUMNS, rows))
    results, curves = summarise(config, cases)
    results["confidence"]["held_out"] = run.decisions.held_out
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
    write_results(workdir, results, curves, history, cases)
    unfinished.finish()
    return results


def leaks(workdir, cases):
    """Notes on test cases that training has seen, or that look as if it had."""
    tested = Seen()
    for case in cases:
        tested.add(case.case_id, case.patient, case.fingerprint)
    return Seen.read(workdir / "fingerprints.npz").leaks(tested)


def write_results(folder, results, curves, history, cases):
    """metrics.json with the curves, figures/ and report.html of scored cases."""
    results["curves"] = curves
    files.write_text(folder / "metrics.json", json.dumps(results, indent=1, allow_nan=False))
    cards = case_cards(cases)
    gallery = [report.gallery_item(card, why) for card, why in choose_gallery(cards)]
    report.write_report(
        folder, results=results, curves=curves, history=history, gallery=gallery, cards=cards
    )


class Unfinished:
    """The cases of an evaluation that are done, so that an interrupted one can go on.

    A marker file stands beside them until `finish`. Statistics of a finished evaluation are never
    taken for results of a new one: test images may have changed in between.
    """

    def __init__(self, folder, *, of_run):
        self._folder, self._marker = Path(folder), Path(folder) / "unfinished"
        if not self._marker.is_file() or self._marker.read_text() != of_run:
            shutil.rmtree(folder, ignore_errors=True)
            files.write_text(files.folder(folder) / "unfinished", of_run)

    def load(self, name):
        """The `CaseStatistics` of a case that is done, or None."""
        path = self._folder / f"{name}.npz"
        try:
            return CaseStatistics.load(path) if path.is_file() else None
        except InputError:
            return None

    def save(self, name, found):
        found.save(self._folder / f"{name}.npz")

    def finish(self):
        self._marker.unlink()


def _fingerprint(workdir, dataset):
    """A text that differs between runs, trainings of a run, and lists of test cases."""
    digest = hashlib.sha256((workdir / "config.json").read_bytes())
    digest.update((workdir / "decisions.json").read_bytes())
    digest.update("\n".join(entry.case_id for entry in dataset.test).encode())
    return digest.hexdigest()


def read_statistics(workdir):
    """The `CaseStatistics` of a finished evaluation, by file name. Raises `InputError`."""
    folder = Path(workdir) / "predictions" / "statistics"
    paths = sorted(folder.glob("*.npz"))
    if not paths or (folder / "unfinished").is_file():
        raise InputError(
            workdir,
            found="an unfinished evaluation" if paths else "no statistics of cases",
            expected="the workdir of an evaluated run",
            remedy="Run python -m caal_jax.main with this --workdir to finish it.",
        )
    return [CaseStatistics.load(path) for path in paths]


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


def write_maps(stem, prediction, case, *, maps="auto"):
    """The anomaly map, and the epistemic uncertainty as a share of its largest value, ln 2."""
    write_map(f"{stem}_anomaly", prediction.anomaly, case, form=maps)
    write_map(f"{stem}_uncertainty", np.clip(prediction.epistemic / LN2, 0, 1), case, form=maps)


def bar_maps(run, case):
    """The anomaly maps of the trivial bars, {name: (map, score)}, on the case's own grid."""
    config = run.config
    grid = {"image_size": config.image_size, "patch": read_patch_size(config)}
    stack = case_stack(case, channels=run.channels, **grid)
    image, inside = bar_input(stack.raw, stack.low, stack.high, config.foreground_threshold)
    found = {}
    for bar in BARS:
        squares = np.asarray(bar.predict(bar.fit(image), image, inside))
        score = map_score(squares, np.asarray(inside), config)
        native = stack.native(squares)
        found[bar.name] = (native if case.is_volume else native[0], score)
    return found


@jax.jit
def bar_input(raw, low, high, threshold):
    """Slices (N, S, S, C) as bars see them, in [0, 1] but not equalised, and their foreground
    (N, S, S) bool; the arguments are those of `preprocess.rescale` and `preprocess.foreground`."""
    image = jax.vmap(rescale)(raw, low, high)
    inside = jax.vmap(lambda one: foreground(one, threshold=threshold))(image)
    return image, inside[..., 0]


def scores_csv(cases):
    """scores.csv: one line per case."""
    names = ("case_id", "kind", "label", "score", "score_std", "probability", "p_value", "verdict")
    return csv_text(names, [[getattr(case, name) for name in names] for case in cases])


def case_cards(cases):
    """The `report.Card`s of scored cases, each with its error.

    That is the distance of the probability from the label or, where the maps came without
    probability, the share of cases of the other label that score on the wrong side.
    """
    scores = {label: np.array([c.score for c in cases if c.label == label]) for label in (0, 1)}

    def error(case):
        if case.probability is not None:
            return abs(case.probability - case.label)
        others = scores[1 - case.label]
        wrong = others >= case.score if case.label else others <= case.score
        return float(np.mean(wrong)) if others.size else None

    return [
        report.Card(
            case_id=case.case_id,
            kind=case.kind,
            label=case.label,
            score=case.score,
            probability=case.probability,
            verdict=case.verdict,
            uncertainty=case.score_std,
            error=error(case),
            sprites=case.sprites,
        )
        for case in cases
    ]


def choose_gallery(cards, each=4):
    """[(card, why)]: best, worst and random cases, by their error; nobody twice."""
    known = sorted((card for card in cards if card.error is not None), key=lambda c: c.error)
    abnormal = [card for card in known if card.label]
    best = (abnormal or known)[:each]
    worst = [card for card in reversed(known) if card not in best][:each]
    rest = [card for card in cards if card not in best and card not in worst]
    order = np.random.default_rng(0).permutation(len(rest))[:each]
    chosen = {"best": best, "worst": worst, "random": [rest[i] for i in order]}
    return [(card, why) for why, found in chosen.items() for card in found]


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
            "bias": round(decisions.pixel.bias, 3),
            "rule": f"fitted on held-out healthy cases and synthetic anomalies ({config.task}) "
            "made in them; real anomalies may be calibrated differently.",
        },
    }


def run_facts(config, wall_seconds):
    """What is needed to trust or repeat a run."""
    return {
        "config": json.loads(config.to_json()),
        "seed": config.seed,
        "versions": versions(),
        "device": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        "wall_seconds": round(wall_seconds, 1),
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions():
    """{package: version} of what the numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in VERSIONS}


def git_commit():
    """The commit of the checkout the package runs from, or None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def main(argv):
    # The module that scores maps stands on this one.
    from caal_jax.score_maps import score_maps

    given = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    try:
        results = score_maps(
            given.predictions, given.truth, given.output, slice_axis=given.slice_axis
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    print(report.results_table(results))
    print(f"report: {Path(given.output) / 'report.html'}")


if __name__ == "__main__":
    # Defined here, as binaries that import this module have options of the same names.
    flags.DEFINE_string("predictions", None, "A folder of maps: NIfTI, PNG or .npy.")
    flags.DEFINE_string("truth", None, "A folder of masks of the same names.")
    flags.DEFINE_string("output", None, "The folder for metrics.json and report.html.")
    flags.DEFINE_integer("slice_axis", 2, "The axis of volumes that pictures are cut along.")
    flags.mark_flags_as_required(["predictions", "truth", "output"])
    app.run(main)
