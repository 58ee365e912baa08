"""ChestX-ray14 of the NIH Clinical Center: frontal chest radiographs, some findings boxed."""

import re
from collections import defaultdict

import numpy as np

from caal_jax.data.case import DataSet
from caal_jax.data.public.tables import numbers, read_table, read_text
from caal_jax.data.public.truth import amend, box_mask
from caal_jax.data.readers import existing_folder, file_entry, image_files
from caal_jax.data.split import MIN_TRAIN, TEST_SEED, hold_out
from caal_jax.errors import InputError

LAYOUT = "Point it at the folder with Data_Entry_2017.csv and the unpacked images/."
TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
SIDE = 1024  # pixels of a published image; boxes are given on this grid
COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
SPACING = ("OriginalImagePixelSpacing[x", "y]", "OriginalImage[Width", "Height]")
TEST_SHARE_OF_PATIENTS = 0.2
ADULT, OLDEST = 18, 120  # years; the table holds ages of several hundred


def chestxray14(root, *, sex="all", validation_fraction=0.2, seed=0):
    """ChestX-ray14 in its public layout (Wang et al., CVPR 2017).

    root: the folder with Data_Entry_2017.csv (or its 2020 version), images at any depth, and where
    they are there test_list.txt and BBox_List_2017.csv. Without the list 20 % of the patients are
    test patients. Images may be resized copies, whole ones: boxes and spacing follow their size.
    Only posterior-anterior images of adults (over 18) are used, as PII and NSA did. sex: "M", "F"
    or "all". Training: "No Finding". Test: these and all findings; boxes are the truth where there
    are any, otherwise an image counts for image scores only. `kind` is the first finding.
    Raises: InputError if a table is missing or broken, or fewer than two patients can train.
    """
    if sex not in ("M", "F", "all"):
        raise InputError("sex", found=repr(sex), expected="'M', 'F' or 'all'", remedy="Pick one.")
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    table = next((root / name for name in TABLES if (root / name).is_file()), root / TABLES[0])
    rows = read_table(table, COLUMNS, keep=(*COLUMNS, *SPACING))
    paths, notes = _paths(root), []
    rows = _usable(rows, paths, sex, notes)
    test_images = _test_images(root, rows, notes)
    boxes = _boxes(root, notes)
    train = [row for name, row in rows.items() if name not in test_images and not _finding(row)]
    patients = {row["Patient ID"] for row in train}
    if len(patients) < MIN_TRAIN:
        raise InputError(
            f"data_dir {root}",
            found=f"images without a finding of {len(patients)} training patients",
            expected=f"at least {MIN_TRAIN} patients",
            remedy=LAYOUT,
        )
    validation = hold_out(patients, fraction=validation_fraction, seed=seed)
    test = [row for name, row in rows.items() if name in test_images]

    def entry(row):
        name, kind = row["Image Index"], _finding(row)
        one = file_entry(
            paths[name],
            case_id=name.rsplit(".", 1)[0],
            patient=row["Patient ID"],
            label=int(bool(kind)),
            kind=kind or "normal",
        )
        drawn = boxes.get(name) if kind else None
        mask = (lambda shape: box_mask(shape, _on_grid(drawn, shape))) if drawn else None
        return amend(one, mask=mask, spacing_mm=_spacing_mm(row))

    return DataSet(
        name="ChestX-ray14",
        train=[entry(row) for row in train if row["Patient ID"] not in validation],
        validation=[entry(row) for row in train if row["Patient ID"] in validation],
        test=[entry(row) for row in test],
        test_has_masks=any(_finding(row) and row["Image Index"] in boxes for row in test),
        notes=tuple(notes),
    )


def _paths(root):
    paths = {}
    for path in image_files(root):
        # The first of two copies: both are the published file.
        paths.setdefault(path.name, path)
    return paths


def _usable(rows, paths, sex, notes):
    usable, counts = {}, defaultdict(int)
    for row in rows:
        name = row["Image Index"]
        age = re.fullmatch(r"0*(\d{1,4})Y?", row["Patient Age"])
        age = int(age[1]) if age else OLDEST + 1
        if name in usable:
            counts["stand twice in the table"] += 1
        elif name not in paths:
            counts["of the table are not there"] += 1
        elif age > OLDEST:
            counts["have no credible age"] += 1
        elif row["View Position"] == "PA" and age > ADULT and sex in (row["Patient Gender"], "all"):
            usable[name] = row
    notes += [f"{count} images {what} and are left out." for what, count in counts.items()]
    return usable


def _test_images(root, rows, notes):
    path = root / "test_list.txt"
    if path.is_file():
        listed = set(read_text(path).split())
        test_patients = {row["Patient ID"] for name, row in rows.items() if name in listed}
        shared = [
            name
            for name, row in rows.items()
            if name not in listed and row["Patient ID"] in test_patients
        ]
        if shared:
            raise InputError(
                path,
                found=f"other images of the patient of {shared[0]}",
                expected="each patient on one side",
                remedy="Download the list again.",
            )
        notes.append("The test patients are those of test_list.txt.")
    else:
        everyone = [row["Patient ID"] for row in rows.values()]
        test_patients = hold_out(everyone, fraction=TEST_SHARE_OF_PATIENTS, seed=TEST_SEED)
        notes.append("No test_list.txt: patients were divided at random, 80 to 20.")
    return {name for name, row in rows.items() if row["Patient ID"] in test_patients}


def _boxes(root, notes):
    """{image: [(left, top, right, bottom), ...]} of BBox_List_2017.csv, {} without it."""
    path = root / "BBox_List_2017.csv"
    if not path.is_file():
        notes.append("No BBox_List_2017.csv: findings count for image scores only.")
        return {}
    boxes, bad = defaultdict(list), 0
    columns = ("Bbox [x", "y", "w", "h]")
    for row in read_table(path, ("Image Index", *columns)):
        values = numbers(" ".join(row[column] for column in columns), 4)
        x, y, width, height = values or (0, 0, 0, 0)
        inside = x + width > 0 and y + height > 0 and x < SIDE and y < SIDE
        if width > 0 and height > 0 and inside:
            boxes[row["Image Index"]].append((x, y, x + width, y + height))
        else:
            bad += 1
    if bad:
        notes.append(f"{bad} boxes are empty, outside the image or not numbers; left out.")
    return dict(boxes)


def _finding(row):
    """The first finding of an image, or "" if it has none."""
    first = row["Finding Labels"].split("|")[0].strip()
    return "" if first == "No Finding" else first or "unknown"


def _on_grid(boxes, shape):
    """Boxes of the published image in pixels of a copy of it with the shape (H, W)."""
    height, width = shape
    return np.array(boxes) * (width, height, width, height) / SIDE


def _spacing_mm(row):
    """A function from an image's shape (H, W) to its (row, column) size of a pixel, or None."""
    found = numbers(" ".join(row.get(name, "") for name in SPACING), 4)
    if not found or min(found) <= 0:
        return None
    x, y, width, height = found
    return lambda shape: (y * height / shape[0], x * width / shape[1])
