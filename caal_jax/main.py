"""The binary: train an ensemble, evaluate it, write the report.

python -m caal_jax.main --config=configs/mood.py [--workdir=DIR] [--mode=train_and_evaluate]
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from caal_jax import report
from caal_jax.data import load_dataset
from caal_jax.errors import InputError
from caal_jax.evaluate import evaluate
from caal_jax.train import train

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file in configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; default runs/<config's name>.")
MODE = flags.DEFINE_enum(
    "mode",
    "train_and_evaluate",
    ["train_and_evaluate", "train", "evaluate"],
    "What to do. Training resumes where the workdir's last run stopped.",
)


def train_and_evaluate(config, workdir, mode="train_and_evaluate"):
    """Runs a config; returns the results, or None with mode "train"."""
    workdir = Path(workdir)
    dataset = load_dataset(config)
    print(
        f"{dataset.name}: {len(dataset.train)} training, {len(dataset.validation)} held-out "
        f"healthy, {len(dataset.test)} test cases",
        flush=True,
    )
    if dataset.stamp == "phantom":
        print("No data_dir given: this is the built-in phantom, made-up images.", flush=True)
    if mode != "evaluate":
        train(config, workdir, dataset)
    if mode == "train":
        return None
    results = evaluate(config, workdir, dataset)
    print(report.results_table(results))
    print(f"report: {workdir / 'report.html'}")
    return results


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of its work at INFO
    config = CONFIG.value
    name = Path(flags.FLAGS["config"].config_filename).stem
    try:
        train_and_evaluate(config, WORKDIR.value or f"runs/{name}", MODE.value)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
