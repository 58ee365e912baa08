"""A folder of the user's own images, or an MVTec AD category."""

import dataclasses
from pathlib import Path

from caal_jax.data.case import DataSet
from caal_jax.data.planted import planted_entries
from caal_jax.data.readers import (
    SUFFIXES,
    existing_folder,
    file_entry,
    image_files,
    refuse_folder,
    stem_of,
)
from caal_jax.data.split import MIN_TRAIN, PLANT_SEED, TEST_SEED, hold_out
from caal_jax.errors import InputError
from caal_jax.files import printable

TRAIN_FOLDERS = ("normal", "train/good")
NORMAL_NAMES = ("good", "normal")
LAYOUT = "Put healthy images into normal/ (or train/good/), test images into test/<class>/."


def folder(root, *, slice_axis=2, validation_fraction=0.2, seed=0):
    """Images in folders named by class.

    Training: `normal/` or MVTec's `train/good/`, any mix of supported formats, searched to any
    depth; a folder with the slices of one DICOM series counts as one volume. Images in the same
    sub-folder count as one patient, unless there is one sub-folder only.
    Test: `test/good/` (or `test/normal/`) and one folder per kind of anomaly, whose sub-folders
    are patients in the same way, those of training if they have the same name; with masks at
    `ground_truth/<kind>/<stem>_mask.*`, `test/<kind>_mask/<stem>.*`, or `<stem>_mask.*` beside
    the image. Without `test/`, a share of the healthy images is held out and gets planted
    anomalies (`stamp` says so).
    slice_axis: the axis of NIfTI volumes that is cut into slices.
    Raises: InputError if the folder is missing or holds fewer than two training images.
    """
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    home = _train_folder(root)
    paths = [path for path in image_files(home) if not _is_mask(path)]
    if len(paths) < MIN_TRAIN:
        raise InputError(
            home,
            found=f"{len(paths)} image{'s' * (len(paths) != 1)}",
            expected=f"at least {MIN_TRAIN} healthy images",
            remedy=LAYOUT,
        )
    ids = case_ids(paths, home)
    folders = {path: _sub_folder(path, home) for path in paths}
    patients = _patients(folders, ids)
    healthy = [
        (
            patients[path],
            file_entry(path, case_id=ids[path], patient=patients[path], slice_axis=slice_axis),
        )
        for path in paths
    ]
    test, test_has_masks, notes = None, True, []
    if (root / "test").is_dir():
        known = set(folders.values()) if patients != ids else set()
        test, test_has_masks = _test_entries(root, slice_axis, known, notes)
    dataset = divide(healthy, test, validation_fraction=validation_fraction, seed=seed)
    return dataclasses.replace(
        dataset,
        name=printable(root.resolve().name),
        test_has_masks=test_has_masks,
        notes=(*dataset.notes, *notes),
    )


def divide(healthy, test, *, validation=(), validation_fraction, seed):
    """A `DataSet` without a name, from healthy entries and those of the test split, if any.

    healthy: [(patient, entry)] to train on. test, validation: entries. Where they are empty, a
    share of the healthy patients is held out; the test split's get planted anomalies.
    """
    patients = {patient for patient, _ in healthy}
    held_out, chosen, notes = set(), set(), []

    def pick(names):
        return [entry for patient, entry in healthy if patient in names]

    if not test:
        # Of those that seed 0 leaves, so that no other seed is tested on other images than seed 0.
        first = set() if validation else hold_out(patients, fraction=validation_fraction, seed=0)
        chosen = hold_out(patients - first, fraction=validation_fraction, seed=TEST_SEED)
    if not validation:
        held_out = hold_out(patients, fraction=validation_fraction, seed=seed, never=chosen)
        validation = pick(held_out)
    if validation_fraction and not validation:
        notes.append("There are too few healthy images to hold some out for validation.")
    stamp = ""
    if not test:
        test, stamp = planted_entries(pick(chosen), seed=PLANT_SEED), "planted"
        notes.append(
            f"There is no test split: anomalies are planted into {len(test)} held-out images."
        )
    return DataSet(
        name="",
        train=pick(patients - held_out - chosen),
        validation=list(validation),
        test=test,
        stamp=stamp,
        notes=tuple(notes),
    )


def _train_folder(root):
    for name in TRAIN_FOLDERS:
        if (root / name).is_dir():
            return root / name
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    raise InputError(
        f"data_dir {root}",
        found=f"neither normal/ nor train/good/, but {', '.join(names[:8]) or 'an empty folder'}",
        expected="one of the two",
        remedy=LAYOUT,
    )


def _test_entries(root, slice_axis, known, notes):
    """The entries of `test/`, and whether any abnormal one has a mask.

    known: the sub-folders that are patients of training.
    """
    home = root / "test"
    paths = [path for path in image_files(home) if not _is_mask(path)]
    ids, folders = case_ids(paths, home), {}
    for path in paths:
        parts = path.relative_to(home).parts
        if len(parts) < 2:
            raise InputError(
                path,
                found="an image directly in test/",
                expected="a folder that names its class",
                remedy="Put it into test/good/ or test/<kind of anomaly>/.",
            )
        if not parts[0].lower().endswith(("_mask", "_masks")):
            folders[path] = _sub_folder(path, home / parts[0])
    patients = _patients(folders, {path: f"test/{ids[path]}" for path in folders}, known)
    entries, num_abnormal, num_masks = [], 0, 0
    for path, patient in patients.items():
        inner = path.relative_to(home)
        kind = inner.parts[0]
        normal = kind.lower() in NORMAL_NAMES
        masks = () if normal else _masks_of(root, path, inner)
        num_abnormal += not normal
        num_masks += bool(masks)
        entries.append(
            file_entry(
                path,
                case_id=ids[path],
                patient=patient,
                label=0 if normal else 1,
                kind="normal" if normal else kind,
                masks=masks,
                slice_axis=slice_axis,
            )
        )
    if not entries:
        raise InputError(home, found="no image", expected="test images by class", remedy=LAYOUT)
    if num_masks < num_abnormal:
        notes.append(
            f"{num_abnormal - num_masks} of {num_abnormal} abnormal test images have no mask and "
            "count for image scores only."
        )
    return entries, num_masks > 0


def _masks_of(root, path, inner):
    kind, stem = inner.parts[0], stem_of(path)
    # Sub-folders below the class are repeated below the mask folder.
    below = Path(*inner.parts[1:-1])
    places = [
        (root / "ground_truth" / kind / below, (f"{stem}_mask", stem)),
        (root / "test" / f"{kind}_mask" / below, (stem, f"{stem}_mask")),
        (root / "test" / f"{kind}_masks" / below, (stem, f"{stem}_mask")),
        (path.parent, (f"{stem}_mask",)),
    ]
    for parent, stems in places:
        for mask_stem in stems:
            for suffix in SUFFIXES:
                mask = parent / f"{mask_stem}{suffix}"
                try:
                    if mask.is_file():
                        return (mask,)
                except OSError as error:
                    refuse_folder(error, parent)
    return ()


def _is_mask(path):
    return stem_of(path).endswith("_mask")


def case_ids(paths, home):
    """One id per path, fit for a file name: the path below `home` without suffix, joined by -."""
    ids, taken = {}, set()
    for path in paths:
        parts = path.relative_to(home).parts if path.is_relative_to(home) else (path.name,)
        stem = printable("-".join((*parts[:-1], stem_of(path))))
        # a.png and a.jpg, or a/b.png and a-b.png, would overwrite each other's maps.
        name, number = stem, len(ids)
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        ids[path] = name
        taken.add(name)
    return ids


def _sub_folder(path, home):
    """The folder directly below `home` that an image lies in or, a DICOM series, is; or ""."""
    parts = path.relative_to(home).parts
    return parts[0] if len(parts) > 1 or (parts and path.is_dir()) else ""


def _patients(folders, ids, known=frozenset()):
    """{path: patient} of {path: sub-folder}: the folder if there are several, or if it is known."""
    names = set(folders.values()) - {""}
    if len(names) < MIN_TRAIN:
        names &= known
    # A loose file keeps its own id, told apart from a folder of the same name.
    return {path: f"{name}/" if name in names else ids[path] for path, name in folders.items()}
