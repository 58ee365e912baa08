"""The doctor: reads a whole data set before you train on it, and names every problem.

python -m caal_jax.data.check --config=configs/folder.py --config.data_dir=DIR [--output=DIR]

Prints counts, sizes, spacing and intensities by split and each problem with its file; writes
check.json and check.png (intensities and a contact sheet) to --output. Exit code 0: fit to train
on; 1: there are errors. Warnings alone do not count.
"""

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from caal_jax.data.doctor import examine, summary, write_findings


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    name = Path(flags.FLAGS["config"].config_filename).stem
    output = Path(flags.FLAGS.output or f"runs/{name}_check")
    findings = examine(flags.FLAGS.config)
    write_findings(findings, output)
    print(summary(findings))
    print(f"intensities and contact sheet: {output / 'check.png'}")
    sys.exit(1 if findings.num_errors else 0)


if __name__ == "__main__":
    # Defined here: binaries that import each other have options of the same names.
    config_flags.DEFINE_config_file("config", None, "The experiment: a file in configs/.")
    flags.DEFINE_string("output", None, "Where it goes; default runs/<config's name>_check.")
    flags.mark_flag_as_required("config")
    app.run(main)
