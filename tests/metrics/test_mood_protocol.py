import random
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from caal_jax.errors import InputError
from caal_jax.metrics.protocols import mood

SHAPE = (9, 8, 7)


def write_volume(path, values):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def write_line(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def literal(cases):
    """What the challenge does with (label, prediction) arrays: all in one list, scikit-learn."""
    labels = [np.clip(np.rint(label).astype(int), 0, 1).ravel() == 1 for label, _ in cases]
    scores = [
        np.clip(scores.astype(np.float16), np.float16(0), np.float16(1)).ravel()
        for _, scores in cases
    ]
    return average_precision_score(np.concatenate(labels), np.concatenate(scores))


@pytest.fixture
def cases(tmp_path):
    """Volumes that cover what the float16 of the challenge does to scores."""
    rng = np.random.default_rng(0)
    made = {}
    for name, spread in (("a", 1.0), ("b", 1e-3), ("c", 1e-8)):
        label = (rng.random(SHAPE) < 0.2).astype(np.float32)
        made[f"{name}.nii.gz"] = label, np.float32(spread * rng.beta(1 + label, 3))
    label, scores = made["a.nii.gz"]
    scores[0, 0, :4] = -0.5, 1.7, 2e5, -0.0  # beyond [0, 1], and beyond float16
    label[1, 1, :3] = 0.6, 3.0, -2.0  # rounded, then clipped
    for name, (label, scores) in made.items():
        write_volume(tmp_path / "labels" / name, label)
        write_volume(tmp_path / "predictions" / name, scores)
    return made


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # of the restatement
def test_pixel_score_is_bit_for_bit_that_of_scikit_learn(tmp_path, cases):
    found = mood.evaluate_pixel(tmp_path / "predictions", tmp_path / "labels")
    assert found.score == literal(cases.values())
    assert found.outcome == dict.fromkeys(cases, "scored")
    # Without float16 the number would be another one.
    exact = average_precision_score(
        np.concatenate([np.clip(np.rint(y), 0, 1).ravel() for y, _ in cases.values()]),
        np.concatenate([np.clip(s, 0, 1).ravel() for _, s in cases.values()]),
    )
    assert found.score != exact


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_what_cannot_be_used_counts_as_zeros(tmp_path, cases):
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    (predictions / "a.nii.gz").unlink()
    write_volume(predictions / "b.nii.gz", np.ones((*SHAPE, 1), np.float32))
    (labels / "d.nii.gz").write_bytes(b"no volume")
    write_volume(predictions / "d.nii.gz", np.ones(SHAPE, np.float32))
    write_volume(labels / "e.nii.gz", cases["a.nii.gz"][0])
    (predictions / "e.nii.gz").write_bytes(b"")
    write_volume(predictions / "extra.nii.gz", np.ones(SHAPE, np.float32))
    found = mood.evaluate_pixel(predictions, labels)
    zeros = np.zeros(SHAPE)
    left = [(cases[f"{name}.nii.gz"][0], zeros) for name in "aba"]
    assert found.score == literal([*left, cases["c.nii.gz"]])
    assert found.outcome == {
        "a.nii.gz": "missing",
        "b.nii.gz": "wrong shape",
        "c.nii.gz": "scored",
        "d.nii.gz": "label is unreadable",
        "e.nii.gz": "unreadable",
    }


def test_no_positive_scores_zero_and_all_missing_the_prevalence(tmp_path, cases):
    for name in cases:
        (tmp_path / "predictions" / name).unlink()
    positives = np.mean([np.rint(label) >= 1 for label, _ in cases.values()])
    found = mood.evaluate_pixel(tmp_path / "predictions", tmp_path / "labels")
    assert found.score == pytest.approx(positives, abs=1e-15)
    for name in cases:
        write_volume(tmp_path / "labels" / name, np.zeros(SHAPE, np.float32))
    assert mood.evaluate_pixel(tmp_path / "predictions", tmp_path / "labels").score == 0


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_bootstrap_draws_as_the_challenge(tmp_path, cases):
    folders = tmp_path / "predictions", tmp_path / "labels"
    state = random.getstate()
    found = mood.bootstrap_pixel(*folders)
    assert random.getstate() == state
    random.seed(123)
    splits = [random.sample([0, 1, 2], k=2) for _ in range(10)]
    random.setstate(state)
    values = list(cases.values())
    scores = [literal([values[i] for i in split]) for split in splits]
    assert found == mood.MoodBootstrap(np.mean(scores), scores, splits)
    again = mood.bootstrap_pixel(*folders, splits=splits[:3])
    assert again.scores == scores[:3]
    assert mood.bootstrap_pixel(*folders, seed=1).splits != splits
    with pytest.raises(InputError, match="3 label files"):
        mood.bootstrap_pixel(*folders, num_files=4)


@pytest.fixture
def sample_folders(tmp_path):
    lines = {  # label, prediction
        "a.txt": ("1\n", "0.7\nignored"),
        "b.txt": ("0", " 0.2 "),
        "c.txt": ("0\n1", "1.5"),
        "d.txt": ("1", "-inf"),
        "e.txt": ("1", "none"),
        "f.txt": ("1", None),
        "g.txt": ("1.0", "0.9"),
        "h.txt": ("0", "0.7"),
        "i.txt": ("1", ""),
    }
    for name, (label, prediction) in lines.items():
        write_line(tmp_path / "labels" / name, label)
        if prediction is not None:
            write_line(tmp_path / "predictions" / name, prediction)
    return tmp_path / "predictions", tmp_path / "labels"


def test_sample_score(sample_folders):
    found = mood.evaluate_sample(*sample_folders)
    labels = [1, 0, 0, 1, 1, 1, 0, 1]
    assert found.score == average_precision_score(labels, [0.7, 0.2, 1, 0, 0, 0, 0.7, 0])
    unusual = {name: told for name, told in found.outcome.items() if told != "scored"}
    assert unusual == {
        "e.txt": "unreadable",
        "f.txt": "missing",
        "g.txt": "label is unreadable",
        "i.txt": "unreadable",
    }
    assert len(mood.bootstrap_sample(*sample_folders, num_runs=3, num_files=5).scores) == 3


def test_what_ends_the_official_script_is_told(tmp_path, cases, sample_folders):
    write_line(sample_folders[0] / "b.txt", "nan")
    with pytest.raises(InputError, match=r"b\.txt: found NaN"):
        mood.evaluate_sample(*sample_folders)
    write_line(sample_folders[0] / "b.txt", "0")
    write_line(sample_folders[1] / "b.txt", "2")
    with pytest.raises(InputError, match=r"b\.txt: found 2"):
        mood.evaluate_sample(*sample_folders)
    scores = cases["b.nii.gz"][1]
    scores[2, 2, 2] = np.nan
    folders = tmp_path / "volumes", tmp_path / "truth"
    write_volume(folders[1] / "b.nii.gz", cases["b.nii.gz"][0])
    write_volume(folders[0] / "b.nii.gz", scores)
    with pytest.raises(InputError, match=r"b\.nii\.gz: found NaN"):
        mood.evaluate_pixel(*folders)
    (folders[1] / "b.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="no readable label"):
        mood.evaluate_pixel(*folders)
    with pytest.raises(InputError, match="no folder"):
        mood.evaluate_pixel(tmp_path / "nowhere", folders[1])


def test_the_command_tells_the_score_and_what_was_not_scored(sample_folders):
    command = [sys.executable, "-m", "caal_jax.metrics.protocols.mood", "--mode=sample"]
    folders = [
        f"--{name}={path}"
        for name, path in zip(("predictions", "labels"), sample_folders, strict=True)
    ]
    said = subprocess.run([*command, *folders], capture_output=True, text=True, check=True).stdout
    assert f"average precision {mood.evaluate_sample(*sample_folders).score!r}" in said
    assert "f.txt: missing" in said
