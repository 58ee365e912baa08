"""Parts of published sets, as found, through the paths of docs/data.md; skipped without them."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from numpy.testing import assert_allclose

from caal_jax.data import load_dataset
from caal_jax.data.public import chestxray14
from caal_jax.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="real images are not here")


def load(dataset, data_dir):
    fields = {"dataset": dataset, "data_dir": str(data_dir), "validation_fraction": 0.2, "seed": 0}
    return load_dataset(ConfigDict(fields))


def counts(data):
    return [len(part) for part in (data.train, data.validation, data.test)]


def test_head_ct():
    data = load("head_ct", SHARED / "head_ct")
    cases = [entry.load() for entry in data.test]
    abnormal = [case for case in cases if case.label]
    assert [case.kind for case in abnormal] == ["haemorrhage"] * 10
    assert all(case.mask is None for case in abnormal)
    assert not data.test_has_masks
    train = [entry.load() for entry in data.train + data.validation]
    assert len(train) + len(cases) == 22
    assert not {case.patient for case in train} & {case.patient for case in cases if not case.label}
    sizes = np.array([case.image.shape[:2] for case in train + cases])
    assert (sizes.min(axis=0).tolist(), sizes.max(axis=0).tolist()) == ([283, 224], [957, 821])
    assert {case.image.dtype.name for case in train + cases} == {"uint8"}


def test_chest_films(tmp_path, monkeypatch):
    films = SHARED / "NIH_ChestXray14"
    with pytest.raises(InputError, match="images without a finding of 1 training patients"):
        load("chestxray14", films)
    # One patient is enough to see the films through the reader, the other being for the test.
    monkeypatch.setattr(chestxray14, "MIN_TRAIN", 1)
    (tmp_path / "images").mkdir()
    for path in (*films.glob("*.csv"), *films.glob("images/*.png")):
        shutil.copyfile(path, tmp_path / path.relative_to(films))
    listed = "".join(f"00000001_00{k}.png\n" for k in (0, 1, 2))
    (tmp_path / "test_list.txt").write_text(listed)
    data = load("chestxray14", tmp_path)
    assert counts(data) == [1, 0, 3]
    assert [entry.case_id for entry in data.train] == ["00000005_000"]
    cases = [entry.load() for entry in data.test]
    assert [(case.kind, case.mask, case.patient) for case in cases] == [
        ("Cardiomegaly", None, "1")
    ] * 3
    assert {(case.image.shape, case.image.dtype.name) for case in cases} == {
        ((1024, 1024, 1), "uint8")
    }
    assert_allclose(cases[0].geometry.spacing_mm, (0.143 * 2749 / 1024, 0.143 * 2682 / 1024))


def test_hippocampus():
    data = load("hippocampus", SHARED / "Task04_Hippocampus")
    assert counts(data) == [45, 14, 11]
    assert data.stamp == "planted"
    case = data.train[0].load()
    assert case.is_volume
    assert case.geometry.spacing_mm == (1.0, 1.0, 1.0)
    kinds = [entry.load().kind for entry in data.test]
    assert kinds.count("normal") == 5


def test_volumes_of_a_table(tmp_path):
    """A template and a CT to train on, a glioma (BraTS) and multiple sclerosis to test."""
    brats = SHARED / "brats2015TrainingData" / "train" / "brats_2013_pat0006_1"
    lesions = SHARED / "open_ms_data" / "cross_sectional" / "MNI" / "patient19"
    rows = [("file", "split", "kind", "mask")]
    rows += [(path, "train", "", "") for path in sorted((SHARED / "niivue_volumes").iterdir())]
    for kind, home, image, mask in (
        ("glioma", brats, "Flair_*", "OTMulti*"),
        ("lesions", lesions, "FLAIR_*", "GOLD_*"),
    ):
        rows.append((next(home.glob(image)), "test", kind, next(home.glob(mask))))
    with (tmp_path / "volumes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    data = load("folder", tmp_path / "volumes.csv")
    assert counts(data) == [2, 0, 2]
    ct, template = (entry.load() for entry in data.train)
    assert (ct.image.shape, ct.image.dtype) == ((58, 175, 248, 1), np.uint8)
    assert_allclose(ct.geometry.spacing_mm, (2.397, 0.812, 0.813), atol=1e-3)
    assert (template.image.shape, template.image.dtype) == ((91, 91, 109, 1), np.int16)
    assert_allclose(template.geometry.spacing_mm, (2, 2, 2))
    glioma, sclerosis = (entry.load() for entry in data.test)
    assert (glioma.image.shape, glioma.kind) == ((155, 240, 240, 1), "glioma")
    assert (sclerosis.image.shape, sclerosis.kind) == ((182, 182, 218, 1), "lesions")
    assert sclerosis.mask.sum() == 49769
    assert 0 < glioma.mask.mean() < 0.05
    # FLAIR is bright in both; a mask turned round would not see it.
    for case in (glioma, sclerosis):
        image = case.image[..., 0]
        assert image[case.mask].mean() > image[image > 0].mean()
