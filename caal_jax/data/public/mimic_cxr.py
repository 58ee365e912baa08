"""MIMIC-CXR-JPG: chest radiographs with labels taken from their reports."""

import re

from caal_jax.data.case import DataSet
from caal_jax.data.public.tables import read_table
from caal_jax.data.readers import existing_folder, file_entry
from caal_jax.data.split import MIN_TRAIN
from caal_jax.errors import InputError

LAYOUT = "Point it at the folder with files/ and mimic-cxr-2.0.0-{split,metadata,chexpert}.csv.gz."
NO_FINDING = "No Finding"
NOT_ABNORMAL = ("subject_id", "study_id", NO_FINDING, "Support Devices")


def mimic_cxr(root):
    """MIMIC-CXR-JPG in its public layout (Johnson et al., arXiv 1901.07042), PA views only.

    Follows the publishers' split by patient. Training and validation: studies that CheXpert calls
    "No Finding", one image each. Test: these and studies with a positive finding, for image scores
    only; `kind` is the first finding, uncertain ones are left out. The published images are 8-bit
    and already histogram-equalised: equalising them again changes little.
    Raises: InputError if a table is missing or broken, one patient is in two parts of the split,
    or fewer than two patients can be trained on.
    """
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    columns = ("dicom_id", "subject_id", "study_id", "split")
    split = _table(root, "split", columns, keep=columns)
    columns = ("dicom_id", "ViewPosition")
    views = _table(root, "metadata", columns, keep=columns)
    labels = _table(root, "chexpert", ("study_id", NO_FINDING))
    frontal = {row["dicom_id"] for row in views if row["ViewPosition"] == "PA"}
    findings = {row["study_id"]: _finding(row) for row in labels}
    parts, part_of, studies = {"train": [], "validate": [], "test": []}, {}, set()
    counts = {"have no usable label": 0, "are not there": 0}
    for row in split:
        patient, study, part = row["subject_id"], row["study_id"], row["split"]
        if part not in parts or part_of.setdefault(patient, part) != part:
            raise InputError(
                root / "mimic-cxr-*-split.csv",
                found=f"patient {patient} in {part!r}",
                expected="each patient in one of train, validate, test",
                remedy="Download it again.",
            )
        if row["dicom_id"] not in frontal or study in studies:
            continue
        kind = findings.get(study)
        path = root / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}"
        path = path / f"{row['dicom_id']}.jpg"
        if kind is None:
            counts["have no usable label"] += 1
        elif part != "test" and kind != "normal":
            continue
        elif not re.fullmatch(r"\d+ \d+ [\w-]+", f"{patient} {study} {row['dicom_id']}") or (
            not path.is_file()
        ):
            counts["are not there"] += 1
        else:
            studies.add(study)
            parts[part].append(
                file_entry(
                    path,
                    case_id=row["dicom_id"],
                    patient=patient,
                    label=int(kind != "normal"),
                    kind=kind,
                )
            )
    if len({patient for patient, part in part_of.items() if part == "train"}) < MIN_TRAIN or (
        len(parts["train"]) < MIN_TRAIN
    ):
        raise InputError(
            f"data_dir {root}",
            found=f"{len(parts['train'])} PA images without a finding in the training part",
            expected=f"at least {MIN_TRAIN}",
            remedy=LAYOUT,
        )
    notes = ["The split is the publishers'; normal means CheXpert's No Finding."]
    notes += [f"{count} PA images {what}." for what, count in counts.items() if count]
    return DataSet(
        name="MIMIC-CXR-JPG",
        train=parts["train"],
        validation=parts["validate"],
        test=parts["test"],
        test_has_masks=False,
        notes=tuple(notes),
    )


def _table(root, name, columns, *, keep=None):
    found = sorted(root.glob(f"mimic-cxr-*-{name}.csv*"))
    path = found[-1] if found else root / f"mimic-cxr-2.0.0-{name}.csv.gz"
    return read_table(path, columns, keep=keep)


def _finding(row):
    """ "normal", the first positive finding, or None where the report is not clear."""
    if row[NO_FINDING] in ("1", "1.0"):
        return "normal"
    positive = [
        name for name, value in row.items() if name not in NOT_ABNORMAL and value in ("1", "1.0")
    ]
    return positive[0] if positive else None
