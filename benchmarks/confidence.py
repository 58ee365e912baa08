"""Ways of being uncertain, side by side on real scans: a table for the README.

python benchmarks/confidence.py --data=../shared/data --steps=300 --size=96

--sets=lgg or busi and --methods choose among the rows; the table goes to benchmarks/CONFIDENCE.md.

--data holds LGG/ (kaggle_3m) and BUSI/ with BUSI_256_normals/. Every row is a run of its own under
--workdir, trained on the same tasks and scored on the same test cases. A row that is done is not
run again, one that was interrupted goes on; the table is written anew after each.
"""

import argparse
import json
import runpy
import shlex
import sys
from pathlib import Path

from caal_jax import parallel
from caal_jax.data import load_dataset
from caal_jax.evaluate import evaluate
from caal_jax.train import train

# Two tasks, as only the probabilistic one gives the std head something to learn.
TASK = "fpi_blob*2+probabilistic_pii"
PLAIN = {"num_members": 1, "num_samples": 1, "head": "binary"}
METHODS = {
    "single network": {},
    "MC dropout": {"dropout": 0.2, "num_samples": 20},
    "std head": {"head": "std", "num_samples": 20},
    "ensemble of 5": {"num_members": 5},
    # Half the published width and six levels for 128 pixels: the published one needs six times
    # the work, 60 times that of the U-Net.
    "PHiSeg": {
        "localiser": "phiseg",
        "width": 16,
        "depth": 6,
        "latent_levels": 5,
        "num_samples": 20,
    },
    "ensemble of 5 + dropout": {"num_members": 5, "dropout": 0.2, "num_samples": 4},
}
FOLDERS = {
    "lgg": {"data_dir": "LGG"},
    "busi": {"data_dir": "BUSI", "extra_normals": "BUSI_256_normals"},
}
COLUMNS = {
    "pixel AP": ("pixel", "ap"),
    "image AUROC": ("image", "auroc"),
    "ECE": ("confidence", "ece"),
    "Brier": ("confidence", "brier"),
    "AURC": ("confidence", "aurc"),
    "error AUROC": ("confidence", "error_auroc"),
    "error AUROC of disagreement": ("confidence", "error_auroc_epistemic"),
    "error AUROC of the std": ("confidence", "by_uncertainty", "std", "error_auroc"),
}
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def config_of(name, method, options):
    """The config of one row."""
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    for field, folder in FOLDERS[name].items():
        config[field] = str(Path(options.data) / folder)
    config.task = TASK
    config.update(PLAIN | METHODS[method])
    if options.steps:
        config.num_steps = options.steps
    if options.size:
        config.image_size = options.size
    return config


def row_results(name, method, options):
    """metrics.json of one row, from an earlier call or made now."""
    config = config_of(name, method, options)
    workdir = Path(options.workdir) / name / method.replace(" ", "_").replace("+", "and")
    done = workdir / "metrics.json"
    if done.is_file():
        found = json.loads(done.read_text())
        if found["run"]["config"] == json.loads(config.to_json()):
            return found
    print(f"{name}: {method}", flush=True)
    dataset = load_dataset(config)
    train(config, workdir, dataset)
    return evaluate(config, workdir, dataset)


def cell(results, *path):
    """A number with its interval, if it has one, in three digits that count."""
    *sections, key = path
    for section in sections:
        results = results[section]
    value, interval = results[key], results.get(f"{key}_ci95")
    if value is None:
        return "n/a"
    if not interval or None in interval:
        return f"{value:.3g}"
    return f"{value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"


def table(name, rows):
    """Markdown lines of one data set; rows: {method: results}."""
    data, run = (next(iter(rows.values()))[key] for key in ("data", "run"))
    prevalence = next(iter(rows.values()))["pixel"]["prevalence"]
    lines = [
        f"## {name.upper()}: {data['num_train']} training and {data['num_test']} test cases",
        "",
        f"{run['config']['num_steps']} steps at {run['config']['image_size']} x "
        f"{run['config']['image_size']}, task `{run['config']['task']}`, seed {run['seed']}; share "
        f"of abnormal pixels {prevalence:.3g}. {run['device']}, commit {run['git_commit']}.",
        "",
        f"| method | samples | {' | '.join(COLUMNS)} | minutes |",
        "| --- " * (len(COLUMNS) + 3) + "|",
    ]
    for method, results in rows.items():
        cells = [cell(results, *path) for path in COLUMNS.values()]
        config = results["run"]["config"]
        samples = config["num_members"] * config["num_samples"]
        minutes = results["run"]["wall_seconds"] / 60
        lines.append(f"| {method} | {samples} | {' | '.join(cells)} | {minutes:.1f} |")
    return [*lines, ""]


HEADER = """# Ways of being uncertain

Brackets are 95 % bootstrap intervals over patients. ECE, Brier score and AURC: lower is better;
the rest: higher. The error AUROC asks whether the predictive entropy finds wrong pixels, the next
column whether the difference of samples alone (mutual information) does, the last whether their
standard deviation does. Samples of a std head differ by how ambiguous it finds the label, those of
the others by what the networks do not know; a single network without samples has neither.
Minutes: training and evaluation.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--sets", default="lgg,busi")
    parser.add_argument("--methods", default=",".join(METHODS), help="rows, by their names")
    parser.add_argument("--steps", type=int, default=0, help="0: those of the config")
    parser.add_argument("--size", type=int, default=0, help="0: that of the config")
    parser.add_argument("--workdir", default="runs/confidence")
    parser.add_argument("--output", default="benchmarks/CONFIDENCE.md")
    options = parser.parse_args()
    parallel.keep_memory()
    parallel.start()
    parallel.cache_programs()
    done = {}
    for name in options.sets.split(","):
        for method in options.methods.split(","):
            done.setdefault(name, {})[method] = row_results(name, method, options)
            command = f"`python benchmarks/confidence.py {shlex.join(sys.argv[1:])}`"
            lines = [HEADER, command, ""]
            lines += [line for one, rows in done.items() for line in table(one, rows)]
            Path(options.output).write_text("\n".join(lines))
    print(Path(options.output).read_text())


if __name__ == "__main__":
    main()
