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


def study_config(config):
    """Adds the fields of a study to the training config that all its cells start from.

    Its `num_steps` and `image_size` are the budget of every cell. A cell sets `task`, `equalise`,
    `localiser`, `seed` and, for its confidence, `num_members`, `num_samples` and `dropout`.
    """
    # Lists are separated by commas.
    config.grid_tasks = "cutpaste,fpi,pii,nsa,probabilistic_pii"
    config.grid_equalise = "none,preprocess"
    config.grid_localisers = "unet"
    config.grid_confidence = "single"
    config.grid_seeds = "0,1,2"
    # Afterwards, for the best tasks by `RULE`: these ways in place of the ones above.
    config.num_best = 2
    config.best_equalise = "source_guidance,both_guidance"
    config.best_confidence = "ensemble"
    return config


GRID = tuple(study_config(ConfigDict()))


def first_cells(study):
    """The cells of the core grid, all variants of one seed before the next seed."""
    axes = (study.grid_tasks, study.grid_equalise, study.grid_localisers, study.grid_confidence)
    return _for_each_seed(study, itertools.product(*(axis.split(",") for axis in axes)))


def further_cells(study, best_tasks):
    """The cells that only the best tasks get: more ways of equalising, more ways of confidence."""
    ways = list(itertools.product(study.best_equalise.split(","), ["single"]))
    ways += itertools.product(study.grid_equalise.split(","), study.best_confidence.split(","))
    variants = [(task, way, "unet", confidence) for task in best_tasks for way, confidence in ways]
    return _for_each_seed(study, variants)


def _for_each_seed(study, variants):
    variants = [Variant(*variant) for variant in variants]
    return [Cell(one, int(seed)) for seed in study.grid_seeds.split(",") for one in variants]


def cell_config(study, cell):
    """The training config of a cell."""
    config = ConfigDict({name: study[name] for name in study if name not in GRID})
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
