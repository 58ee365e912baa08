"""What a study runs: cells of a grid that is written down before the first of them begins."""

import itertools
import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from caal_jax import files
from caal_jax.errors import InputError
from caal_jax.evaluate import git_commit

# Ways of being uncertain: the fields of a training config that make them.
CONFIDENCE = {
    "single": {"num_members": 1, "num_samples": 1},
    "std_head": {"num_members": 1, "num_samples": 8},
    "dropout": {"num_members": 1, "dropout": 0.2, "num_samples": 8},
    "ensemble": {"num_members": 5, "num_samples": 1},
    "ensemble_dropout": {"num_members": 5, "dropout": 0.2, "num_samples": 4},
}
RULE = (
    "A task's rank is its mean pixel AP, over seeds and ways of equalising, on anomalies of kinds "
    "that no task makes, planted in held-out healthy scans. Test scans never enter."
)


class Variant(NamedTuple):
    """A row of the table: one choice of each axis."""

    task: str
    equalise: str
    localiser: str
    confidence: str

    @property
    def plain(self):
        """The row it is compared with: the single U-Net on the same task, without equalisation."""
        return Variant(self.task, "none", "unet", "single")

    @property
    def label(self):
        return " / ".join(self)


class Cell(NamedTuple):
    """One training and evaluation."""

    variant: Variant
    seed: int

    @property
    def name(self):
        return files.safe_name("-".join([*self.variant, f"seed{self.seed}"]))


def study_config(base):
    """The fields of a study around the training config that all its cells start from.

    base: a training config; its `num_steps` and `image_size` are the budget of every cell.
    """
    study = ConfigDict()
    study.base = base
    study.tasks = ("cutpaste", "fpi", "pii", "nsa", "probabilistic_pii")
    study.equalise = ("none", "preprocess")
    study.localisers = ("unet",)
    study.confidence = ("single",)
    study.seeds = (0, 1, 2)
    # Afterwards, for the best tasks by `RULE`: these ways in place of the ones above.
    study.num_best = 2
    study.best_equalise = ("source_guidance", "both_guidance")
    study.best_confidence = ("ensemble",)
    study.num_resamples = 1000
    return study


def first_cells(study):
    """The cells of the core grid, all variants of one seed before the next seed."""
    variants = itertools.product(study.tasks, study.equalise, study.localisers, study.confidence)
    return [Cell(Variant(*variant), seed) for seed, variant in _by_seed(study, variants)]


def further_cells(study, best_tasks):
    """The cells that only the best tasks get: more ways of equalising, more ways of confidence."""
    variants = []
    for task in best_tasks:
        variants += [(task, way, "unet", "single") for way in study.best_equalise]
        variants += [
            (task, way, "unet", confidence)
            for way in study.equalise
            for confidence in study.best_confidence
        ]
    return [Cell(Variant(*variant), seed) for seed, variant in _by_seed(study, variants)]


def _by_seed(study, variants):
    return itertools.product(study.seeds, list(variants))


def cell_config(study, cell):
    """The training config of a cell."""
    config = study.base.copy_and_resolve_references()
    task, equalise, localiser, confidence = cell.variant
    if confidence not in CONFIDENCE:
        raise InputError(
            "confidence",
            found=repr(confidence),
            expected=" or ".join(CONFIDENCE),
            remedy="Correct the study's config.",
        )
    config.update(CONFIDENCE[confidence])
    config.update({"task": task, "equalise": equalise, "localiser": localiser, "seed": cell.seed})
    return config


def write_plan(study, folder):
    """Writes plan.json before the first cell, or checks that this is the plan that stands there.

    Raises: InputError for another plan: a grid that grows after a look at results is no plan.
    """
    wanted = {
        "primary_metric": "pixel.ap",
        "second_metric": "image.auroc",
        "rule_for_the_best": RULE,
        "study": json.loads(study.to_json()),
        "first_cells": [cell.name for cell in first_cells(study)],
    }
    path = Path(folder) / "plan.json"
    if not path.is_file():
        made = {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": version("caal_jax"),
            "git_commit": git_commit(),
        }
        files.write_text(path, json.dumps(wanted | made, indent=1))
        return
    found = json.loads(path.read_text())
    differing = [key for key, value in wanted.items() if found.get(key) != value]
    if differing:
        raise InputError(
            path,
            found=f"another plan (different: {', '.join(differing)})",
            expected="the plan of this config",
            remedy="Pass another --output; a plan is not changed after its first cell.",
        )
