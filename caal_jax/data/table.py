"""The user's own images, as a CSV table lists them."""

import dataclasses
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from caal_jax.data.case import Entry
from caal_jax.data.folder import NORMAL_NAMES, case_ids, divide
from caal_jax.data.public.tables import read_table
from caal_jax.data.readers import file_entry
from caal_jax.data.split import MIN_TRAIN, SPLITS
from caal_jax.errors import InputError
from caal_jax.files import printable

COLUMNS = ("file", "split", "patient", "kind", "mask")


class Line(NamedTuple):
    """A usable line. kind: "" where the mask decides; masks: files, none for a plain image."""

    path: Path
    split: str
    patient: str
    kind: str
    masks: tuple[Path, ...]


def table(path, *, slice_axis=2, validation_fraction=0.2, seed=0):
    """Images listed in a CSV file with a header line.

    file: an image, a volume, or the folder of a DICOM series; relative paths start at the table's
    folder. split: train, validation (both healthy) or test. Optional columns: patient (otherwise
    each file is one), kind ("normal", or the name of the anomaly), mask (several joined by ";").
    A test line needs a kind or a mask; with a mask alone, the image is abnormal if the mask is not
    empty. Without validation lines a share of the training patients is held out; without test
    lines another share, with planted anomalies (`stamp` says so).
    Raises: InputError for the first line that cannot be used (`read_lines` has all), or if fewer
    than two patients remain for training.
    """
    path = Path(path)
    lines, problems = read_lines(path)
    if problems:
        raise problems[0]
    ids = case_ids([line.path for line in lines], path.parent)
    parts = {split: [] for split in SPLITS}
    for line in lines:
        case_id = ids[line.path]
        patient = line.patient or case_id
        parts[line.split].append((patient, _entry(line, case_id, patient, slice_axis)))
    num_patients = len({patient for patient, _ in parts["train"]})
    if num_patients < MIN_TRAIN:
        raise InputError(
            path,
            found=f"{num_patients} patient(s) with split train",
            expected=f"at least {MIN_TRAIN}",
            remedy="Mark more healthy images as train.",
        )
    dataset = divide(
        parts["train"],
        [entry for _, entry in parts["test"]],
        validation=[entry for _, entry in parts["validation"]],
        validation_fraction=validation_fraction,
        seed=seed,
    )
    has_masks = any(line.masks for line in lines if line.split == "test")
    return dataclasses.replace(
        dataset, name=printable(path.stem), test_has_masks=has_masks or bool(dataset.stamp)
    )


def read_lines(path):
    """The usable lines of a table, and an `InputError` for each of the others.

    Raises: InputError if the table itself cannot be read or lacks a column.
    """
    lines, problems, seen = [], [], Counter()
    rows = read_table(path, COLUMNS[:2], keep=COLUMNS)
    for number, row in enumerate(rows, start=2):
        found = _line(path, row)
        if isinstance(found, Line):
            seen[found.path] += 1
            if seen[found.path] > 1:
                found = (f"{row['file']!r} a second time", "each file once")
        if isinstance(found, Line):
            lines.append(found)
            continue
        problems.append(
            InputError(
                f"{path} row {number}",
                found=found[0],
                expected=found[1],
                remedy="Correct or delete the row.",
            )
        )
    return lines, problems


def _line(table_path, row):
    """The `Line` of a row, or (found, expected) of what is wrong with it."""
    home = table_path.parent
    masks = tuple(home / name for name in re.split(r"\s*;\s*", row.get("mask", "")) if name)
    kind = row.get("kind", "")
    # Unlike a path's own methods, these say no to names that no file can have.
    if not row["file"] or not os.path.exists(home / row["file"]):
        return f"file {row['file']!r}, which is not there", "an existing file"
    for mask in masks:
        if not os.path.isfile(mask):
            return f"mask {str(mask.name)!r}, which is not there", "an existing file"
    if row["split"] not in SPLITS:
        return f"split {row['split']!r}", " or ".join(SPLITS)
    if row["split"] != "test":
        if kind.lower() not in ("", *NORMAL_NAMES) or masks:
            return f"{kind or 'a mask'} in split {row['split']}", "healthy images there"
        kind = "normal"
    elif not kind and not masks:
        return "neither kind nor mask", "one of them, to know whether the test image is normal"
    if kind.lower() in NORMAL_NAMES:
        kind = "normal"
    return Line(home / row["file"], row["split"], row.get("patient", ""), kind, masks)


def _entry(line, case_id, patient, slice_axis):
    entry = file_entry(
        line.path,
        case_id=case_id,
        patient=patient,
        label=int(line.kind != "normal"),
        kind=line.kind or "abnormal",
        masks=line.masks,
        slice_axis=slice_axis,
    )
    if line.kind:
        return entry

    def load():
        case = entry.load()
        label = int(case.mask.any())
        return dataclasses.replace(case, label=label, kind="abnormal" if label else "normal")

    return Entry(case_id, load, entry.paths)
