"""The Medical Out-of-Distribution challenge (MOOD): brain MRI and abdominal CT volumes."""

import dataclasses

import numpy as np

from caal_jax.data.case import DataSet, Entry
from caal_jax.data.planted import planted_entries
from caal_jax.data.readers import (
    existing_folder,
    file_entry,
    image_files,
    read_image,
    read_mask,
    stem_of,
)
from caal_jax.data.split import MIN_TRAIN, PLANT_SEED, TEST_SEED, hold_out
from caal_jax.errors import InputError
from caal_jax.files import printable

# The challenge's own code uses both names for the abdomen.
REGION_NAMES = {"brain": ("brain",), "abdomen": ("abdom", "colon")}
SLICE_AXES = {"brain": 2, "abdomen": 1}
LAYOUT = "Point it at the unpacked MOOD folder, with brain/brain_train/00000.nii.gz and so on."


def mood(root, *, region, validation_fraction=0.2, test_fraction=0.2, seed=0):
    """One region of MOOD in its public layout.

    root: the folder with `brain/` and `abdom/` or `colon/`, or the region's own folder, which
    holds `<name>_train/` and, if there, `toy/` with `toy_label/pixel/` and `toy_label/sample/`.
    region: "brain" (slices along array axis 2) or "abdomen" (axis 1).
    The real test set is hidden, so the test split joins the labelled toy cases with held-out
    healthy volumes of which about half get planted anomalies; `stamp` says so.
    Raises: InputError for an unknown region, a missing folder, fewer than two volumes, or two of
    one name.
    """
    if region not in REGION_NAMES:
        raise InputError(
            "region", found=repr(region), expected="'brain' or 'abdomen'", remedy="Pick one."
        )
    axis = SLICE_AXES[region]
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    home, train_home = _find_region(root, region)
    paths = _volumes(train_home)
    if len(paths) < MIN_TRAIN:
        raise InputError(
            train_home,
            found=f"{len(paths)} volume{'s' * (len(paths) != 1)}",
            expected=f"at least {MIN_TRAIN}",
            remedy=LAYOUT,
        )
    entries = {
        stem_of(path): file_entry(
            path, case_id=stem_of(path), patient=stem_of(path), slice_axis=axis
        )
        for path in paths
    }

    def pick(names):
        return [entry for name, entry in entries.items() if name in names]

    held_out = hold_out(entries, fraction=test_fraction, seed=TEST_SEED)
    rest = set(entries) - held_out
    validation = hold_out(rest, fraction=validation_fraction, seed=seed)
    planted = planted_entries(pick(held_out), seed=PLANT_SEED)
    notes = []
    toys = _toy_entries(home, axis, notes)
    notes.append(
        f"Test split: {len(toys)} labelled toy cases and {len(planted)} held-out healthy volumes, "
        "about half of which carry planted anomalies."
    )
    return DataSet(
        name=f"MOOD {region}",
        train=pick(rest - validation),
        validation=pick(validation),
        test=toys + planted,
        stamp="planted" if planted else "",
        notes=tuple(notes),
    )


def _find_region(root, region):
    """The region's folder and the folder of its training volumes below."""
    tried = []
    for name in REGION_NAMES[region]:
        for home in (root / name, root):
            tried.append(home / f"{name}_train")
            if tried[-1].is_dir():
                return home, tried[-1]
    raise InputError(
        f"data_dir {root}",
        found="none of " + ", ".join(str(path.relative_to(root)) for path in tried),
        expected=f"the training volumes of the {region}",
        remedy=LAYOUT,
    )


def _volumes(folder):
    """`image_files` of a folder, whose names are the names of the cases."""
    paths, first = image_files(folder), {}
    for path in paths:
        if first.setdefault(stem_of(path), path) != path:
            raise InputError(
                path,
                found=f"a second file of that name, after {first[stem_of(path)]}",
                expected="each volume once",
                remedy="Remove one of them, or give it another name.",
            )
    return paths


def _toy_entries(home, axis, notes):
    if not (home / "toy").is_dir():
        return []
    entries, unlabelled = [], 0
    for path in _volumes(home / "toy"):
        pixel = home / "toy_label" / "pixel" / path.name
        sample = home / "toy_label" / "sample" / f"{path.name}.txt"
        if pixel.is_file() or sample.is_file():
            entries.append(_toy_entry(path, pixel, sample, axis))
        else:
            unlabelled += 1
    if unlabelled:
        notes.append(f"{unlabelled} toy cases have no label and are left out.")
    return entries


def _toy_entry(path, pixel, sample, axis):
    case_id = f"toy-{printable(stem_of(path))}"

    def load():
        case = read_image(path, slice_axis=axis)
        shape = case.image.shape[:-1]
        mask = read_mask(pixel, shape, slice_axis=axis) if pixel.is_file() else None
        label = _read_label(sample) if sample.is_file() else int(mask.any())
        if mask is None and label == 0:
            mask = np.zeros(shape, bool)
        return dataclasses.replace(
            case,
            case_id=case_id,
            mask=mask,
            label=label,
            kind="toy" if label else "normal",
            patient=case_id,
        )

    return Entry(case_id, load, (path, pixel, sample))


def _read_label(path):
    text = path.read_text(errors="replace").strip()
    if text not in ("0", "1"):
        raise InputError(
            path, found=repr(text[:20]), expected="0 or 1", remedy="Unpack the labels again."
        )
    return int(text)
