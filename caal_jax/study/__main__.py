"""Runs a declared grid of trainings, checks each, and compares them in one table and one page.

python -m caal_jax.study --config=configs/study_lgg.py --config.data_dir=FOLDER
    [--output=studies/study_lgg] [--max_cells=N]

The plan is written first and never changes. Cells run one after the other; several processes may
work on one output folder, on one machine or on several that share it. A cell that was interrupted
goes on, one that is done is not run again. The table of all that is done is written at the end of
a call; --max_cells=0 only writes that.
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from caal_jax import parallel
from caal_jax.errors import InputError, Interrupted
from caal_jax.study.run import run_study

CONFIG = config_flags.DEFINE_config_file("config", None, "The study: a file configs/study_*.py.")
OUTPUT = flags.DEFINE_string("output", None, "Where it goes; default studies/<config's name>.")
MAX_CELLS = flags.DEFINE_integer(
    "max_cells", None, "Cells of this call at most; 0 writes the table."
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    logging.set_verbosity(logging.WARNING)
    parallel.cache_programs()
    parallel.keep_memory()
    name = Path(flags.FLAGS["config"].config_filename).stem
    try:
        run_study(CONFIG.value, OUTPUT.value or f"studies/{name}", max_cells=MAX_CELLS.value)
    except InputError as error:
        sys.exit(f"error: {error}")
    except Interrupted as error:
        sys.exit(str(error))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
