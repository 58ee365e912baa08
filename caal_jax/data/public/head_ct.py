"""Head CT slices with and without a haemorrhage (F. Kitamura, Kaggle); no masks."""

from caal_jax.data.case import DataSet
from caal_jax.data.public.tables import read_table
from caal_jax.data.readers import existing_folder, file_entry
from caal_jax.data.split import MIN_TRAIN, TEST_SEED, hold_out
from caal_jax.errors import InputError

LAYOUT = "Point it at the folder with labels.csv and head_ct/000.png, 001.png and so on."
TEST_SHARE_OF_NORMALS = 0.3
# There are no patient identifiers; neighbours are likely to show one patient.
NEIGHBOURS = 5


def head_ct(root, *, validation_fraction=0.2, seed=0):
    """Head CT in its public layout: `labels.csv` (id, hemorrhage) beside `head_ct/NNN.png`.

    Runs of five consecutive numbers count as one patient. Test cases are all haemorrhages, known
    per image only, and about 30 % of the normal runs.
    Raises: InputError if a label is not 0 or 1, an id is there twice, or too few normals remain.
    """
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    table = root / "labels.csv"
    normals, abnormal, missing = {}, {}, 0
    for row in read_table(table, ("id", "hemorrhage")):
        name, label = row["id"].zfill(3), row["hemorrhage"]
        if not name.isdecimal() or label not in ("0", "1") or name in normals | abnormal:
            raise InputError(
                table,
                found=f"the line {row['id']}, {label}",
                expected="each number once, with 0 or 1",
                remedy="Correct the line.",
            )
        path = root / "head_ct" / f"{name}.png"
        if path.is_file():
            (abnormal if label == "1" else normals)[name] = path
        else:
            missing += 1
    groups = {name: f"run {int(name) // NEIGHBOURS}" for name in normals | abnormal}

    def held_out(names, share, seed):
        return hold_out([groups[name] for name in names], fraction=share, seed=seed)

    test_groups = held_out(normals, TEST_SHARE_OF_NORMALS, TEST_SEED)
    rest = [name for name in normals if groups[name] not in test_groups]
    if len({groups[name] for name in rest}) < MIN_TRAIN:
        raise InputError(
            root,
            found=f"{len(normals)} normal images",
            expected=f"some in at least {MIN_TRAIN} runs of {NEIGHBOURS} numbers",
            remedy=LAYOUT,
        )
    validation = held_out(rest, validation_fraction, seed)

    def entry(name):
        return file_entry(
            (normals | abnormal)[name],
            case_id=name,
            patient=groups[name],
            label=int(name in abnormal),
            kind="haemorrhage" if name in abnormal else "normal",
        )

    notes = ["No patient identifiers: runs of five numbers are kept together."]
    if missing:
        notes.append(f"{missing} images of labels.csv are not there.")
    return DataSet(
        name="Head CT",
        train=[entry(name) for name in rest if groups[name] not in validation],
        validation=[entry(name) for name in rest if groups[name] in validation],
        test=[entry(name) for name in normals if groups[name] in test_groups]
        + [entry(name) for name in abnormal],
        test_has_masks=False,
        notes=tuple(notes),
    )
