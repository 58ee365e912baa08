"""Which patients are held out from training."""

import csv

import numpy as np

from caal_jax.errors import InputError

SPLITS = ("train", "validation", "test")
# Tasks that paste from another patient need two of them.
MIN_TRAIN = 2
# Of drawn test splits and of what is planted into them: every run answers for the same cases.
TEST_SEED, PLANT_SEED = 1, 0


def hold_out(groups, *, fraction, seed, never=()):
    """Draws the groups (patients) that training must not see.

    groups: names, repeated freely, in any order; returns a set of names: the share `fraction` of
    them, rounded, at least one, and never so many that fewer than `MIN_TRAIN` remain. Depends on
    the set of names, `fraction`, `seed` and `never`, names that are not drawn or trained on, alone.
    """
    if not 0 <= fraction < 1:
        raise InputError(
            "validation_fraction",
            found=fraction,
            expected="a share in [0, 1)",
            remedy="Use 0.2 if unsure.",
        )
    names = sorted(set(groups))
    wanted = max(round(fraction * len(names)), 1) if fraction else 0
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    order = [name for name in order if name not in never]
    return set(order[: max(min(wanted, len(order) - MIN_TRAIN), 0)])


def read_split(path, columns):
    """The rows of a `split.csv` as dictionaries, or None where there is no such file.

    Raises: InputError if a column is missing or `use` is neither train nor test.
    """
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            path,
            found=f"no readable table ({error})",
            expected="CSV text in UTF-8",
            remedy="Save it again, or delete the file to get a random split.",
        ) from error
    if missing:
        raise InputError(
            path,
            found=f"no column {missing[0]!r}",
            expected=f"the columns {', '.join(columns)}",
            remedy="Add it, or delete the file to get a random split.",
        )
    for number, row in enumerate(rows, start=2):
        if row["use"] not in ("train", "test"):
            raise InputError(
                f"{path} line {number}",
                found=f"use {row['use']!r}",
                expected="train or test",
                remedy="Correct the line.",
            )
    return rows
