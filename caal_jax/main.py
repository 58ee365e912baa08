"""The binary: train an ensemble, evaluate it, write the report.

python -m caal_jax.main --config=configs/mood.py [--workdir=DIR] [--mode=train_and_evaluate]

A config is a Python file and runs as one: read those of strangers first. The config.json of a run
is only data and works as well, --config=DIR/config.json.
"""

import errno
import sys
import traceback
from importlib.metadata import version
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from caal_jax import files, parallel, report
from caal_jax.data import load_dataset
from caal_jax.errors import InputError, Interrupted
from caal_jax.evaluate import evaluate
from caal_jax.train import train
from caal_jax.workdir import check_config

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
STOPPED = 128 + 15  # what shells say of a process that SIGTERM ended


def train_and_evaluate(config, workdir, mode="train_and_evaluate"):
    """Runs a config; returns the results, or None without an evaluation.

    There is none with mode "train", with `config.members`, and in all processes but the first.
    """
    workdir = Path(workdir)
    software = {name: version(name) for name in ("caal_jax", "jax")}
    parallel.require_same("config, --mode, versions", [config.to_json(), mode, software])
    if mode == "evaluate":
        check_config(config, workdir)
    dataset = load_dataset(config)
    if parallel.writes():
        print(
            f"{dataset.name}: {len(dataset.train)} training, {len(dataset.validation)} held-out "
            f"healthy, {len(dataset.test)} test cases",
            flush=True,
        )
        if dataset.stamp == "phantom":
            print("No data_dir given: this is the built-in phantom, made-up images.", flush=True)
    if mode != "evaluate":
        train(config, workdir, dataset)
    if mode == "train" or config.members or not parallel.writes():
        return None
    with files.lock(workdir):
        results = evaluate(config, workdir, dataset)
    print(report.results_table(results))
    print(f"report: {workdir / 'report.html'}")
    return results


def accept_json(arguments):
    """Command-line arguments in which --config may name a JSON file."""
    return [
        argument.replace("=", f"={Path(__file__).parent / 'json_config.py'}:", 1)
        if argument.startswith(("--config=", "-config=")) and argument.endswith(".json")
        else argument
        for argument in arguments
    ]


def default_workdir(config_path):
    """runs/<name of the config>, or of the folder that a config.json stands in."""
    module, _, argument = config_path.partition(":")
    found = Path(argument).resolve().parent if argument.endswith(".json") else Path(module)
    return Path("runs") / found.stem


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of its work at INFO
    parallel.cache_programs()
    parallel.keep_memory()
    workdir = flags.FLAGS.workdir or default_workdir(flags.FLAGS["config"].config_filename)
    try:
        parallel.start()
        train_and_evaluate(flags.FLAGS.config, workdir, flags.FLAGS.mode)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        parallel.leave(1)
    except Interrupted as error:
        print(error, file=sys.stderr)
        parallel.leave(STOPPED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            print(
                f"error: {error}. Mend this, then repeat the command: it goes on", file=sys.stderr
            )
        else:
            traceback.print_exc()
        # Unhandled, it would wait at the exit for processes that wait for it.
        parallel.leave(1)


if __name__ == "__main__":
    # Defined here: binaries that import each other have options of the same names.
    config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file in configs/, or the config.json of a run."
    )
    flags.DEFINE_string("workdir", None, "Where results go; default runs/<config's name>.")
    flags.DEFINE_enum(
        "mode",
        "train_and_evaluate",
        ["train_and_evaluate", "train", "evaluate"],
        "What to do. Training resumes where the workdir's last run stopped.",
    )
    flags.mark_flag_as_required("config")
    app.run(main, argv=accept_json(sys.argv))
