"""The doctor names every problem that was planted, and passes a clean folder."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import ml_collections
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from caal_jax.data import Case, DataSet, Entry, Geometry, doctor, load_dataset
from caal_jax.data.doctor import draw, examine, summary
from caal_jax.errors import InputError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
RNG = np.random.default_rng(0)


def picture():
    small = RNG.integers(0, 256, (7, 9)).astype(np.uint8)
    return np.array(Image.fromarray(small).resize((72, 56), Image.Resampling.BICUBIC))


def put(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = picture() if array is None else array
    if path.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 2, 3, 1])), path)
    else:
        Image.fromarray(array).save(path)
    return path


def square(value=255):
    mask = np.zeros((56, 72), np.uint8)
    mask[10:20, 5:30] = value
    return mask


def put_dicom(path, **fields):
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    image = picture()
    data.Rows, data.Columns = image.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PhotometricInterpretation, data.PixelData = "MONOCHROME2", image.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def put_series(folder, *slices):
    """A DICOM file for each slice, (series, z in mm)."""
    for number, (series, z) in enumerate(slices):
        put_dicom(
            folder / f"{number}.dcm",
            SeriesInstanceUID=series,
            ImagePositionPatient=[0, 0, z],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1],
        )


@pytest.fixture
def clean(tmp_path):
    for index in range(8):
        put(tmp_path / "normal" / f"{index}.png")
    put(tmp_path / "test" / "good" / "0.png")
    put(tmp_path / "test" / "dent" / "0.png")
    put(tmp_path / "ground_truth" / "dent" / "0_mask.png", square())
    put(tmp_path / "test" / "scratch" / "0.png")
    put(tmp_path / "test" / "scratch_masks" / "0.png", square())
    return tmp_path


def config(root):
    return ml_collections.ConfigDict(
        {"dataset": "folder", "data_dir": str(root), "validation_fraction": 0.25, "seed": 0}
    )


def test_a_clean_folder_passes(clean):
    (clean / "notes.txt").write_text("notes")
    found = examine(config(clean))
    assert found.problems == []
    assert found.counts == {"train": 6, "validation": 2, "test": 3}
    assert found.notes == ["1 files are no images: 1 x .txt."]
    assert len(found.facts) == len(found.pictures) == 11
    text = summary(found)
    assert "6 readable\n  size      56 x 72 (6)\n  spacing   none given, or 1 mm (6)" in text
    assert text.endswith("0 errors, 0 warnings")
    # The outline of the mask is in the picture.
    (dent,) = [image for title, image in found.pictures if title == "test\ndent-0"]
    assert (dent == (255, 176, 0)).all(-1).sum() > 50
    assert draw(found).startswith(b"\x89PNG")


def plant(root):
    """Plants problems; returns [(level, end of the file's name, words of the message)]."""
    normal, dent = root / "normal", root / "test" / "dent"
    cut = put(normal / "cut.png")
    cut.write_bytes(cut.read_bytes()[:-300])
    (normal / "empty.png").touch()
    (normal / "page.png").write_text("<html>404</html>")
    volume = RNG.random((20, 21, 22)).astype(np.float32)
    put(normal / "v.nii.gz", volume)
    gz = put(normal / "cut.nii.gz", volume)
    gz.write_bytes(gz.read_bytes()[:2000])
    volume[3, 4, 5] = np.nan
    put(normal / "nan.nii.gz", volume)
    put(normal / "flat.png", np.full((56, 72), 9, np.uint8))
    put(normal / "tiny.png", picture()[:8, :9])
    put(normal / "colour.png", np.dstack([picture()] * 2 + [picture()]))
    (normal / "loop.png").symlink_to("loop.png")
    (normal / "gone.png").symlink_to("nothing.png")
    outside = put(root.parent / "outside.png")
    (normal / "out.png").symlink_to(outside)
    (normal / "round").symlink_to(root, target_is_directory=True)
    os.close(os.open(os.fsencode(normal) + b"/caf\xe9.png", os.O_CREAT))
    put(root / "stray.png")
    put(root / "test" / "good" / "0.jpg", np.array(Image.open(normal / "3.png")))
    put(dent / "1.png")
    put(root / "ground_truth" / "dent" / "1_mask.png", square()[:40])
    put(dent / "2.png")
    put(root / "ground_truth" / "dent" / "2_mask.png", square(0))
    put(root / "ground_truth" / "dent" / "9_mask.png", square())
    put(dent / "3.png")
    put(root / "ground_truth" / "dent" / "3_mask.png", np.full((56, 72), 255, np.uint8))
    put_series(normal / "gap", ("1.2", 0), ("1.2", 1), ("1.2", 2), ("1.2", 4))
    put_series(normal / "two", ("1.2", 0), ("1.2", 1), ("1.3", 0))
    return [
        ("error", "cut.png", "broken data"),
        ("error", "empty.png", "an empty file"),
        ("error", "page.png", "broken data"),
        ("error", "cut.nii.gz", "EOFError"),
        ("error", "nan.nii.gz", "1 of 9240 values NaN"),
        ("warning", "flat.png", "9 everywhere"),
        ("warning", "tiny.png", "8 x 9 pixels"),
        ("error", "loop.png", "in a circle"),
        ("error", "gone.png", "a link to nothing"),
        ("error", "out.png", "out of the data folder"),
        ("warning", "round", "a link to a folder"),
        ("error", "caf\\xe9.png", "an empty file"),
        ("warning", root.name, "1 images are in no split: stray.png"),
        ("error", "good-0", "looks like 3 of"),
        ("error", "1_mask.png", "a mask of 40 x 72"),
        ("error", "dent/2.png", "its mask is empty"),
        ("error", "9_mask.png", "a mask without an image"),
        ("warning", "dent/3.png", "a mask that covers the whole image"),
        ("error", "normal/gap", "a gap of 2 mm between 2.dcm and 3.dcm"),
        ("error", "normal/two", "found 2 DICOM series"),
        ("warning", "the data set", "mixes grey and colour images"),
        ("warning", "the data set", "mixes images and volumes"),
        ("warning", "the data set", "mixes data types"),
    ]


def test_every_planted_problem_is_named(clean, tmp_path):
    planted = plant(clean)
    output = tmp_path / "doctor"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "caal_jax.data.check",
            f"--config={ROOT / 'configs/folder.py'}",
            f"--config.data_dir={clean}",
            f"--output={output}",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1, done.stderr
    problems = json.loads((output / "check.json").read_text())["problems"]
    for level, where, words in planted:
        hits = [
            problem
            for problem in problems
            if problem["level"] == level
            and problem["where"].endswith(where)
            and words in problem["what"]
        ]
        assert len(hits) == 1, (where, words, problems)
        assert words in done.stdout
    assert len(problems) == len(planted), problems
    assert (output / "check.png").read_bytes().startswith(b"\x89PNG")


def test_a_data_set_that_does_not_load_is_checked_file_by_file(tmp_path):
    put(tmp_path / "normal" / "a.png")
    put(tmp_path / "other" / "b.png").write_bytes(b"")
    found = examine(config(tmp_path))
    assert found.counts == {"files": 2}
    assert [(Path(p.where).name, p.what[:20]) for p in found.problems] == [
        ("normal", "found 1 image; expec"),
        ("b.png", "found an empty file;"),
    ]


def test_many_sizes_become_a_range(tmp_path):
    for side in range(20, 27):
        put(tmp_path / "normal" / f"{side}.png", picture()[:side])
    found = examine(config(tmp_path))
    facts = [fact for fact in found.facts if fact.split == "train"]
    assert len(facts) == 4
    assert "size      " + ", ".join(f"{f.shape[0]} x 72 (1)" for f in facts) in summary(found)
    found.facts = [fact._replace(split="train") for fact in found.facts]
    assert "size      20 to 26 x 72 to 72 (7 different ones)" in summary(found)


@pytest.mark.parametrize(
    ("colours", "equalise", "warned"),
    [(3, "preprocess", True), (3, "none", False), (1, "preprocess", False)],
)
def test_photographs_are_not_equalised_unawares(tmp_path, colours, equalise, warned):
    for index in range(4):
        image = np.stack([picture() for _ in range(colours)], axis=-1).squeeze()
        put(tmp_path / "normal" / f"{index}.png", image)
    chosen = config(tmp_path)
    chosen.equalise = equalise
    problems = examine(chosen).problems
    assert [problem.level for problem in problems] == ["warning"] * warned
    assert all("--config.equalise=none" in problem.what for problem in problems)


def test_all_rows_of_a_table_are_told(tmp_path):
    for name in "abc":
        put(tmp_path / f"{name}.png")
    rows = ["file,split,patient", "a.png,train,p", "b.png,dev,p", "x.png,train,q", "c.png,test,p"]
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    found = examine(config(tmp_path / "cases.csv"))
    assert [problem.where.rpartition(" ")[2] for problem in found.problems] == ["3", "4", "5"]


def test_patients_in_two_splits_are_an_error(tmp_path):
    rows = ["file,split,patient,kind"]
    for index, split in enumerate(["train", "train", "validation", "test", "test"]):
        put(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{split},p{index % 3},normal")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    found = examine(config(tmp_path / "cases.csv"))
    assert [(p.where, p.what) for p in found.problems] == [
        ("patient p0", "is in train and in test."),
        ("patient p1", "is in train and in test."),
    ]


def test_patients_of_a_folder_on_both_sides_are_an_error(tmp_path):
    for place in ("normal/ann", "normal/bob", "normal/cem", "test/good/dan", "test/lesion/ann"):
        put(tmp_path / place / "0.png")
        put(tmp_path / place / "1.png")
    settings = config(tmp_path)
    settings.validation_fraction = 0.0
    assert [(p.level, p.where, p.what) for p in examine(settings).problems] == [
        ("error", "patient ann/", "is in train and in test.")
    ]


def test_dicom_headers_tell_patients_apart(tmp_path):
    def problems():
        settings = config(tmp_path)
        settings.validation_fraction = 0.0
        return [(Path(p.where).name, p.what) for p in examine(settings).problems]

    for name, patient in [("normal/0", "A"), ("normal/1", "B"), ("test/good/2", "B")]:
        put_dicom(tmp_path / f"{name}.dcm", PatientID=patient)
    assert problems() == [("2.dcm", "of test has the patient id of 1.dcm in train.")]
    for name in ("normal/0", "normal/1", "test/good/2"):
        put_dicom(tmp_path / f"{name}.dcm", PatientID="anonymous")
    assert problems() == []


def test_normal_by_its_table_and_abnormal_by_its_mask(tmp_path):
    for name in "abcd":
        put(tmp_path / f"{name}.png")
    put(tmp_path / "m.png", square())
    rows = ["file,split,kind,mask", "a.png,train,,", "b.png,train,,"]
    rows += ["c.png,test,normal,m.png", "d.png,test,dent,m.png"]
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    found = examine(config(tmp_path / "cases.csv"))
    assert [(p.level, Path(p.where).name, p.what) for p in found.problems] == [
        ("error", "c.png", "is listed as normal, but its mask is not empty.")
    ]


def test_what_no_reader_here_lets_through(monkeypatch):
    def entry(name, channels=1):
        image = np.stack([picture() for _ in range(channels)], axis=-1)
        return Entry(name, lambda: Case(name, image, Geometry((1.0, 1.0)), label=0))

    train, test = [entry("a"), entry("b"), entry("a")], [entry("a"), entry("c", channels=2)]
    made = DataSet("made", train=train, validation=[], test=test)
    monkeypatch.setattr(doctor, "load_dataset", lambda config: made)
    assert [tuple(problem) for problem in examine(config("")).problems] == [
        ("error", "c", "has 2 channels; expected 1 or 3."),
        ("error", "a", "is the name of 2 cases in train."),
    ]


# What is forbidden, and the bits of a folder that forbid it.
DENIED = {"stat": 0o600, "scandir": 0o300}


@pytest.mark.parametrize("function", DENIED)
@pytest.mark.parametrize("how", ["bits", "told"])
@pytest.mark.parametrize("place", ["", "normal/sub", "ground_truth/dent"])
def test_folders_that_cannot_be_opened(clean, monkeypatch, function, how, place):
    put(clean / "normal" / "sub" / "0.png")
    (clean / "cases.csv").write_text("file,split\nnormal/0.png,train\nnormal/1.png,train\n")
    closed = clean / place
    if how == "bits":
        if os.geteuid() == 0:
            pytest.skip("permission bits do not bind root")
        closed.chmod(DENIED[function])
    else:
        own = getattr(os, function)

        def refusing(path, *args, **options):
            inside = isinstance(path, (str, Path)) and str(path).startswith(f"{closed}/")
            if inside if function == "stat" else str(path) == str(closed):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return own(path, *args, **options)

        monkeypatch.setattr(os, function, refusing)
    try:
        found = examine(config(clean))
        if closed == clean and function == "stat":
            with pytest.raises(InputError, match="Permission denied"):
                load_dataset(config(clean / "cases.csv"))
    finally:
        closed.chmod(0o700)
    told = [problem for problem in found.problems if "(Permission denied)" in problem.what]
    assert {(problem.level, Path(problem.where)) for problem in told} == {("error", closed)}
    assert told[-1].what == "cannot be opened (Permission denied)."
    if function == "stat" or place == "normal/sub":  # the others need not be listed to load
        assert told[0].what.startswith("found a folder that cannot be opened")


@pytest.mark.skipif(not SHARED.is_dir(), reason="real images are not here")
def test_a_real_set_has_no_false_alarm():
    found = examine(config(SHARED / "hazelnut_toy"))
    assert found.problems == []
    assert sum(found.counts.values()) == len(found.facts) == 44
