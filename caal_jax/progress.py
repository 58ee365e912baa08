"""Progress on the terminal, a line now and then where there is none."""

import sys

from tqdm import tqdm

from caal_jax import parallel

LOG_SECONDS = 60  # between lines in a log file, which must not grow with every step


def progress(*iterable, **options):
    """A `tqdm` bar of the process that writes; the others are silent."""
    seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(*iterable, mininterval=seconds, disable=not parallel.writes(), **options)


def tell(message):
    """A line beside the bars."""
    tqdm.write(message)
