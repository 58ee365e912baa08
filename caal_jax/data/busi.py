"""Breast Ultrasound Images (BUSI): normal, benign and malignant images with lesion outlines."""

import re

import cv2
import numpy as np

from caal_jax.data.case import DataSet
from caal_jax.data.readers import (
    existing_folder,
    file_entry,
    image_files,
    read_image,
    stem_of,
)
from caal_jax.data.split import MIN_TRAIN, TEST_SEED, hold_out, read_split
from caal_jax.errors import InputError

CLASSES = ("normal", "benign", "malignant")
INNER_FOLDER = "Dataset_BUSI_with_GT"
LAYOUT = f"Point it at the folder with {INNER_FOLDER}/normal, benign and malignant."
TEST_SHARE_OF_NORMALS = 0.3
MAX_MASKS = 10  # the published images have three at most


def busi(root, *, extra_normals=None, validation_fraction=0.2, seed=0):
    """BUSI in its public layout (Al-Dhabyani et al., Data in Brief 28, 2020).

    root: the folder with `Dataset_BUSI_with_GT/`, or that folder. All benign and malignant images
    are test images; several masks of one image (`_mask.png`, `_mask_1.png`, ...) are joined.
    Normal images follow `split.csv` beside the data (columns file, label, duplicate_group, use)
    where there is one; otherwise 70 % train and 30 % test. The published set shows some breasts
    twice: groups of near-duplicates are never split.
    extra_normals: a second folder in the same layout whose normal images join the training ones.
    Raises: InputError if a folder or a listed file is missing or fewer than two training images
    remain.
    """
    home = _find(root, "data_dir")
    images = [path for name in CLASSES for path in _images(home / name)]
    groups, test_groups, notes = _split(home, images)
    test_groups = test_groups | {groups[p] for p in images if p.parent.name != "normal"}
    train = [p for p in images if groups[p] not in test_groups]
    test = [p for p in images if groups[p] in test_groups]
    if extra_normals:
        extra = _find(extra_normals, "extra_normals")
        paths = _images(extra / "normal")
        extra_groups, _, _ = _split(extra, paths)
        # The published numbering of groups runs over both folders.
        added = [path for path in paths if extra_groups[path] not in test_groups]
        groups |= extra_groups
        train += added
        notes.append(f"{len(added)} normal images come from the folder {extra.parent.name}.")
    if len(train) < MIN_TRAIN:
        raise InputError(
            f"data_dir {root}",
            found=f"{len(train)} normal training images",
            expected=f"at least {MIN_TRAIN}",
            remedy=LAYOUT,
        )
    validation = hold_out([groups[path] for path in train], fraction=validation_fraction, seed=seed)
    return DataSet(
        name="BUSI",
        train=[_entry(path, groups) for path in train if groups[path] not in validation],
        validation=[_entry(path, groups) for path in train if groups[path] in validation],
        test=[_entry(path, groups) for path in test],
        notes=tuple(notes),
    )


def _find(root, where):
    root = existing_folder(root, where=where, remedy=LAYOUT)
    home = root / INNER_FOLDER if (root / INNER_FOLDER).is_dir() else root
    existing_folder(home / "normal", where=where, remedy=LAYOUT)
    return home


def _images(folder):
    if not folder.is_dir():
        return []
    return [path for path in image_files(folder) if not re.search(r"_mask(_\d+)?$", stem_of(path))]


def _entry(path, groups):
    kind = path.parent.name
    numbered = [""] + [f"_{number}" for number in range(1, MAX_MASKS)]
    masks = [path.with_name(f"{stem_of(path)}_mask{number}{path.suffix}") for number in numbered]
    return file_entry(
        path,
        case_id=stem_of(path),
        patient=groups[path],
        label=int(kind != "normal"),
        kind=kind,
        masks=() if kind == "normal" else [mask for mask in masks if mask.is_file()],
    )


def _split(home, images):
    """Duplicate group of each image, the groups of normal test images, and notes."""
    rows = read_split(home.parent / "split.csv", ("file", "label", "duplicate_group", "use"))
    normals = [path for path in images if path.parent.name == "normal"]
    if rows is None:
        groups = {path: stem_of(path) for path in images}
        groups |= near_duplicate_groups(normals)
        test = hold_out(
            [groups[path] for path in normals], fraction=TEST_SHARE_OF_NORMALS, seed=TEST_SEED
        )
        return groups, test, ["No split.csv: normal images were divided at random, 70 to 30."]
    listed = {home / row["file"]: row for row in rows}
    for path in listed:
        if not path.is_file():
            raise InputError(
                path, found="no such file", expected="what split.csv lists", remedy=LAYOUT
            )
    unlisted = [path for path in images if path not in listed]
    if unlisted:
        raise InputError(
            home.parent / "split.csv",
            found=f"no line for {unlisted[0].relative_to(home)}",
            expected="every image",
            remedy="Add the missing lines, or delete the file to get a random split.",
        )
    groups = {path: row["duplicate_group"] for path, row in listed.items()}
    test = {groups[path] for path in normals if listed[path]["use"] == "test"}
    return groups, test, ["Normal images follow split.csv."]


def near_duplicate_groups(paths):
    """Groups images that show nearly the same, mirrored or not.

    Two images belong together where their 48 x 48 thumbnails correlate above 0.92.
    Returns a dictionary from path to the stem of the first image of its group. Unreadable images
    stay alone; reading them as a case reports them.
    """
    if not paths:
        return {}
    thumbnails = np.stack([_thumbnail(path) for path in paths])
    upright = thumbnails.reshape(len(paths), -1)
    mirrored = thumbnails[:, :, ::-1].reshape(len(paths), -1)
    alike = np.maximum(upright @ upright.T, upright @ mirrored.T) > 0.92
    first = np.arange(len(paths))
    for _ in paths:  # the smallest index travels along chains of duplicates
        reached = np.where(alike, first, len(paths)).min(axis=1)
        reached = np.minimum(first, reached)
        if (reached == first).all():
            break
        first = reached
    return {path: stem_of(paths[index]) for path, index in zip(paths, first, strict=True)}


def _thumbnail(path):
    """48 x 48 with mean 0 and norm 1, so that a product of two is their correlation."""
    try:
        image = read_image(path).image.mean(axis=-1, dtype=np.float32)
    except InputError:
        return np.zeros((48, 48), np.float32)
    small = cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)
