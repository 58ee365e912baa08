"""A contact sheet of synthetic anomalies, to look at before training on them.

python -m caal_jax.synthesis --task=fpi,pii --input=FILE_OR_FOLDER --output=sheet.png

A row per anomaly: target, source, result, label, its standard deviation, and the difference of
result and target. Without --input the images are the built-in phantom's. The same flags give the
same sheet.
"""

import sys

from absl import app, flags, logging

from caal_jax.errors import InputError
from caal_jax.synthesis import TASKS
from caal_jax.synthesis.contact_sheet import contact_sheet
from caal_jax.synthesis.guidance import WAYS

TASK = flags.DEFINE_list("task", None, f"One or more of {', '.join(TASKS)}; or all.")
INPUT = flags.DEFINE_string("input", None, "An image or volume, or a folder of them.")
OUTPUT = flags.DEFINE_string("output", None, "The PNG file to write.")
EQUALISE = flags.DEFINE_enum("equalise", "preprocess", WAYS, "How equalised images are used.")
SEED = flags.DEFINE_integer("seed", 0, "Of the anomalies, and of the choice of images.", 0)
NUM = flags.DEFINE_integer("num", 4, "Anomalies of each task.", 1, 50)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    logging.set_verbosity(logging.WARNING)  # JAX tells at INFO which accelerators it did not find
    how = {"equalise": EQUALISE.value, "seed": SEED.value, "num": NUM.value}
    try:
        print(contact_sheet(TASK.value, INPUT.value, OUTPUT.value, **how))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["task", "output"])
    app.run(main)
