"""Brain MRI slices of lower-grade glioma (TCGA-LGG, "kaggle_3m")."""

import re
from collections import defaultdict

from caal_jax.data.case import DataSet
from caal_jax.data.readers import existing_folder, file_entry, image_files, read_image, stem_of
from caal_jax.data.split import MIN_TRAIN, TEST_SEED, hold_out, read_split
from caal_jax.errors import InputError

INNER_FOLDER = "kaggle_3m"
LAYOUT = f"Point it at the folder with {INNER_FOLDER}/<patient>/<patient>_<n>.tif."
CHANNELS = {"flair": (1,), "all": (0, 1, 2)}
TEST_SHARE_OF_PATIENTS = 0.2
# A tumour fades into the slices next to the last outlined one.
CLEARANCE_SLICES = 2


def lgg(root, *, channel="flair", validation_fraction=0.2, seed=0):
    """LGG in its public layout (Buda, Saha, Mazurowski, Comput Biol Med 109, 2019), 2-D slices.

    root: the folder with `kaggle_3m/`, or that folder. channel: "flair", or "all" for
    pre-contrast, FLAIR and post-contrast.
    Follows `split.csv` beside the data (columns file, patient, label, use) where there is one.
    Otherwise 20 % of the patients are test patients with all their slices, and the others give
    those slices for training that lie at least 2 slices from any outlined lesion; this reads every
    mask. Every patient has a glioma, so "normal" means a slice without one.
    Raises: InputError if a folder or file is missing or fewer than two patients can be trained on.
    """
    if channel not in CHANNELS:
        raise InputError(
            "channel", found=repr(channel), expected="'flair' or 'all'", remedy="Pick one."
        )
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    home = root / INNER_FOLDER if (root / INNER_FOLDER).is_dir() else root
    rows = read_split(home.parent / "split.csv", ("file", "patient", "label", "use"))
    if rows is None:
        train, test = _random_split(home)
        notes = ["No split.csv: patients were divided at random, 80 to 20."]
    else:
        train, test = _listed_split(home, rows)
        notes = ["Patients follow split.csv."]
    patients = {path.parent.name for path in train}
    if len(patients) < MIN_TRAIN:
        raise InputError(
            f"data_dir {root}",
            found=f"normal slices of {len(patients)} training patients",
            expected=f"at least {MIN_TRAIN} patients",
            remedy=LAYOUT,
        )
    validation = hold_out(patients, fraction=validation_fraction, seed=seed)

    def entry(path, abnormal=False):
        return file_entry(
            path,
            case_id=stem_of(path),
            patient=path.parent.name,
            label=int(abnormal),
            kind="glioma" if abnormal else "normal",
            masks=(_mask_of(path),) if abnormal else (),
            channels=CHANNELS[channel],
        )

    notes.append("All patients have a glioma; normal slices are slices without an outline.")
    return DataSet(
        name="LGG",
        train=[entry(path) for path in train if path.parent.name not in validation],
        validation=[entry(path) for path in train if path.parent.name in validation],
        test=[entry(path, abnormal) for path, abnormal in test],
        notes=tuple(notes),
    )


def _listed_split(home, rows):
    """Training paths, and (path, abnormal) of the test split, as `split.csv` has them."""
    train, test = [], []
    for row in rows:
        path, abnormal = home.parent / row["file"], row["label"] != "normal"
        for needed in (path, _mask_of(path)):
            if not needed.is_file():
                raise InputError(
                    needed, found="no such file", expected="what split.csv lists", remedy=LAYOUT
                )
        if row["use"] == "test":
            test.append((path, abnormal))
        elif not abnormal:
            train.append(path)
    shared = {path.parent for path in train} & {path.parent for path, _ in test}
    if shared:
        raise InputError(
            home.parent / "split.csv",
            found=f"patient {min(shared).name} in train and in test",
            expected="each patient on one side",
            remedy="Correct the file, or delete it to get a random split.",
        )
    return train, test


def _random_split(home):
    stacks = defaultdict(list)
    for path in image_files(home):
        if re.search(r"_\d+$", stem_of(path)) and _mask_of(path).is_file():
            stacks[path.parent.name].append(path)
    if not stacks:
        raise InputError(
            home, found="no slice with its mask", expected="<patient>_<n>.tif", remedy=LAYOUT
        )
    held_out = hold_out(stacks, fraction=TEST_SHARE_OF_PATIENTS, seed=TEST_SEED)
    train, test = [], []
    for patient, paths in stacks.items():
        numbers = {path: int(stem_of(path).rsplit("_", 1)[1]) for path in paths}
        lesions = {path for path in paths if read_image(_mask_of(path)).image.any()}
        if patient in held_out:
            test += [(path, path in lesions) for path in paths]
            continue
        lesion_numbers = [numbers[path] for path in lesions]
        train += [
            path
            for path in paths
            if all(abs(numbers[path] - n) >= CLEARANCE_SLICES for n in lesion_numbers)
        ]
    return train, test


def _mask_of(path):
    return path.with_name(f"{stem_of(path)}_mask{path.suffix}")
