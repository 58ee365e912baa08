"""DeepLesion: CT slices with lesions boxed, and the slices around them."""

import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from caal_jax.data.case import DataSet
from caal_jax.data.public.tables import numbers, read_table
from caal_jax.data.public.truth import amend, box_mask
from caal_jax.data.readers import existing_folder, file_entry
from caal_jax.data.split import MIN_TRAIN
from caal_jax.errors import InputError

LAYOUT = "Point it at the folder with DL_info.csv and the unpacked Images_png/."
SERIES = re.compile(r"\d{6}_\d{2}_\d{2}")
OFFSET_HU, LOWEST_HU, HIGHEST_HU = 32768, -1024, 3071
# No slice is certified to be normal; lesions measured elsewhere in a scan are far away at least.
CLEARANCE_MM = 15.0
COLUMNS = (
    "File_name",
    "Bounding_boxes",
    "Lesion_diameters_Pixel_",
    "Coarse_lesion_type",
    "Possibly_noisy",
    "Spacing_mm_px_",
    "Train_Val_Test",
)
TYPES = dict(
    enumerate(
        ("bone", "abdomen", "mediastinum", "liver", "lung", "kidney", "soft tissue", "pelvis"), 1
    )
)


def deeplesion(root):
    """DeepLesion in its public layout (Yan et al., J Med Imaging 5, 2018), 2-D slices.

    root: the folder with DL_info.csv and, at any depth, series folders <patient>_<study>_<series>.
    Follows the publishers' split by patient. Test: the key slices with all their boxes but those
    marked as possibly noisy, and of every series the slice furthest from a lesion. Training and
    validation: slices further from each lesion of their series, noisy or not, than 15 mm and than
    its long diameter. `kind` is the coarse type.
    Values are HU as int16, cut to -1024 .. 3071 (stored values minus 32768).
    Raises: InputError if the table is missing or broken, a patient is in two parts of the split,
    or fewer than two patients can be trained on.
    """
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    table = root / "DL_info.csv"
    series, bad = _lesions(table)
    folders = _series_folders(root)
    parts, patients = {1: [], 2: [], 3: []}, set()
    missing = [name for name in series if name not in folders]
    for name in sorted(series.keys() & folders.keys()):
        lesions, part = series[name], series[name][0]["part"]
        far = _far_slices(lesions, os.listdir(folders[name]))
        if part == 3:
            far = far[-1:]
            clean = [lesion for lesion in lesions if not lesion["noisy"]]
            parts[3] += [
                _entry(folders[name], number, [one for one in clean if one["slice"] == number])
                for number in sorted({lesion["slice"] for lesion in clean})
            ]
        parts[part] += [_entry(folders[name], number, lesions, normal=True) for number in far]
        patients |= {name[:6]} if part == 1 and far else set()
    if len(patients) < MIN_TRAIN:
        raise InputError(
            f"data_dir {root}",
            found=f"slices far from any lesion of {len(patients)} training patients",
            expected=f"at least {MIN_TRAIN} patients",
            remedy=LAYOUT,
        )
    notes = [
        "Normal means far from the measured lesions of a series; no slice is certified normal."
    ]
    if bad:
        notes.append(f"{bad} lines of DL_info.csv are not usable (empty boxes, broken numbers).")
    if missing:
        notes.append(f"{len(missing)} series are not there, the first being {missing[0]}.")
    return DataSet(
        name="DeepLesion", train=parts[1], validation=parts[2], test=parts[3], notes=tuple(notes)
    )


def _lesions(table):
    """{series: its lesions as dictionaries}, and how many lines were not usable."""
    series, part_of, bad = defaultdict(list), {}, 0
    for row in read_table(table, COLUMNS, keep=COLUMNS):
        name = re.fullmatch(r"(\d{6}_\d{2}_\d{2})_(\d{3})\.png", row["File_name"])
        box = numbers(row["Bounding_boxes"], 4)
        spacing = numbers(row["Spacing_mm_px_"], 3)
        diameters = numbers(row["Lesion_diameters_Pixel_"], 2)
        part = numbers(row["Train_Val_Test"], 1)
        usable = name and box and spacing and diameters and part and part[0] in (1, 2, 3)
        if not usable or min(spacing) <= 0 or box[2] <= box[0] or box[3] <= box[1]:
            bad += 1
            continue
        part, patient = int(part[0]), name[1][:6]
        if part_of.setdefault(patient, part) != part:
            raise InputError(
                table,
                found=f"patient {patient} in two parts of Train_Val_Test",
                expected="each patient in one",
                remedy="Download it again.",
            )
        kind = numbers(row["Coarse_lesion_type"], 1) or (-1,)
        series[name[1]].append(
            {
                "slice": int(name[2]),
                "box": box,
                "spacing_mm": (spacing[1], spacing[0]),
                "interval_mm": spacing[2],
                "clearance_mm": max(CLEARANCE_MM, diameters[0] * spacing[0]),
                "kind": TYPES.get(kind[0], "lesion"),
                "noisy": row["Possibly_noisy"] not in ("0", ""),
                "part": part,
            }
        )
    return series, bad


def _series_folders(root):
    found = {}
    for parent, folders, _ in os.walk(root):
        here = [name for name in folders if SERIES.fullmatch(name)]
        found |= {name: Path(parent, name) for name in here}
        folders[:] = [name for name in folders if name not in here]
    return found


def _far_slices(lesions, names):
    """Numbers of the slices that lie clear of every lesion, the furthest last."""
    far = []
    for number in (int(name[:3]) for name in names if re.fullmatch(r"\d{3}\.png", name)):
        gaps = [
            abs(number - lesion["slice"]) * lesion["interval_mm"] - lesion["clearance_mm"]
            for lesion in lesions
        ]
        if min(gaps) > 0:
            far.append((min(gaps), number))
    return [number for _, number in sorted(far)]


def _entry(home, number, lesions, normal=False):
    boxes = [lesion["box"] for lesion in lesions]
    entry = file_entry(
        home / f"{number:03d}.png",
        case_id=f"{home.name}_{number:03d}",
        patient=home.name[:6],
        label=int(not normal),
        kind="normal" if normal else lesions[0]["kind"],
    )
    return amend(
        entry,
        mask=None if normal else lambda shape: box_mask(shape, boxes),
        spacing_mm=lambda shape: lesions[0]["spacing_mm"],
        convert=to_hounsfield,
    )


def to_hounsfield(image):
    """Stored uint16 values to HU, int16."""
    return np.clip(image.astype(np.int32) - OFFSET_HU, LOWEST_HU, HIGHEST_HU).astype(np.int16)
