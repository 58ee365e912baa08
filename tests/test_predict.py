"""Folders of new scans: goes on after a kill, keeps the geometry, tells what it skipped."""

import csv
import json
import shutil
from types import SimpleNamespace

import cv2
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax import evaluate as evaluation
from caal_jax.data.phantom import phantom_dataset
from caal_jax.errors import InputError
from caal_jax.localise import Decisions, FinishedRun, Prediction, read_config
from caal_jax.predict import predict


class MadeUpRun:
    """Answers at once: the anomaly is the image itself. dies_at: the call that is a kill."""

    def __init__(self, dies_at=None):
        self.config = SimpleNamespace(dataset="folder", slice_axis=2, get=lambda name, other: other)
        self.calls, self._dies_at = [], dies_at

    def predict(self, case):
        if len(self.calls) + 1 == self._dies_at:
            self._dies_at = None
            raise KeyboardInterrupt
        self.calls.append(case.case_id)
        if case.image.min() == case.image.max():
            raise InputError(case.case_id, found="a constant", expected="an image", remedy="No.")
        image = np.float32(case.image) / np.float32(case.image.max())
        anomaly = image[..., 0]
        return Prediction(
            anomaly=anomaly,
            epistemic=0.1 * anomaly,
            aleatoric=0.2 * anomaly,
            std=0.1 * anomaly,
            foreground=anomaly > 0,
            regions=[],
            image=image,
            score=float(anomaly.mean()),
            score_std=0.01,
            uncertainty={},
            probability=0.5,
            p_value=0.1,
            exceeds=True,
            verdict="abstain" if "b" in case.case_id else "abnormal",
        )


@pytest.fixture
def use(monkeypatch):
    """use(run): what `predict` finds in any workdir."""

    def put(run):
        monkeypatch.setattr(FinishedRun, "load", lambda workdir: run)
        return run

    return put


@pytest.fixture
def home(tmp_path):
    """A workdir with the files that name a run, and a folder of three images and a broken one."""
    for name in ("config.json", "decisions.json"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        cv2.imwrite(str(tmp_path / "in" / f"{name}.png"), rng.integers(0, 255, (9, 7), np.uint8))
    cv2.imwrite(str(tmp_path / "in" / "flat.png"), np.full((5, 5), 7, np.uint8))
    return tmp_path


def test_masks_beside_images_are_no_scans(home, use):
    for name in ("a_mask", "a_mask_1", "alone_mask"):
        shutil.copy(home / "in" / "b.png", home / "in" / f"{name}.png")
    run = use(MadeUpRun())
    predict(home / "run", home / "in", home / "out")
    assert run.calls == ["a", "alone_mask", "b", "c", "flat"]


def test_pictures_of_a_run_on_phantoms_say_so(home, use):
    run = use(MadeUpRun())
    predict(home / "run", home / "in", home / "out")
    run.config.dataset, run.config.data_dir = "mood", ""
    run.config.region = "brain"
    predict(home / "run", home / "in", home / "stamped")
    plain, marked = (cv2.imread(str(home / name / "a.png")) for name in ("out", "stamped"))
    assert np.nonzero((plain != marked).any(axis=(1, 2)))[0].min() > plain.shape[0] - 40


def lines_of(folder):
    return [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()][1:]


def test_a_killed_prediction_goes_on_with_what_is_left(home, use):
    use(MadeUpRun(dies_at=3))
    with pytest.raises(KeyboardInterrupt):
        predict(home / "run", home / "in", home / "out")
    assert [line["file"] for line in lines_of(home / "out")] == ["a.png", "b.png"]
    with (home / "out" / "cases.jsonl").open("a") as log:
        log.write('{"file": "c.png", "na')  # cut by the kill
    second = use(MadeUpRun())
    rows, skipped = predict(home / "run", home / "in", home / "out")
    assert second.calls == ["c", "flat"]
    assert [row[0] for row in rows] == ["a.png", "b.png", "c.png"]
    assert len(skipped) == 1
    whole, _ = predict(home / "run", home / "in", home / "whole")
    assert rows == whole
    with (home / "out" / "scores.csv").open() as table:
        found = list(csv.DictReader(table))
    assert [row["verdict"] for row in found] == ["abnormal", "abstain", "abnormal"]
    assert [line["file"] for line in lines_of(home / "out")][-1] == "flat.png"


def test_changed_files_and_lost_maps_are_done_again(home, use):
    use(MadeUpRun())
    predict(home / "run", home / "in", home / "out")
    cv2.imwrite(str(home / "in" / "a.png"), np.arange(12, dtype=np.uint8).reshape(3, 4))
    (home / "out" / "c.png").unlink()
    again = use(MadeUpRun())
    predict(home / "run", home / "in", home / "out")
    assert again.calls == ["a", "c", "flat"]
    assert cv2.imread(str(home / "out" / "a_anomaly.png"), cv2.IMREAD_UNCHANGED).shape == (3, 4)
    third = use(MadeUpRun())
    predict(home / "run", home / "in", home / "out")
    assert third.calls == ["flat"]
    assert len(lines_of(home / "out")) == 4


def test_results_of_two_runs_or_formats_are_not_mixed(home, use):
    use(MadeUpRun())
    predict(home / "run", home / "in", home / "out")
    with pytest.raises(InputError, match="results of another run"):
        predict(home / "run", home / "in", home / "out", maps="npy")
    (home / "run" / "decisions.json").write_text('{"threshold": 1}')
    with pytest.raises(InputError, match="Choose another --output"):
        predict(home / "run", home / "in", home / "out")


def test_maps_come_in_the_format_that_is_asked_for(home, use):
    affine = np.diag([2.0, 3, 4, 1])
    volume = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, affine), home / "in" / "v.nii.gz")
    use(MadeUpRun())
    predict(home / "run", home / "in", home / "npy", maps="npy")
    values = np.load(home / "npy" / "v_anomaly.npy")
    assert_allclose(values, volume / volume.max(), rtol=1e-6)
    image = cv2.imread(str(home / "in" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert_allclose(np.load(home / "npy" / "a_anomaly.npy"), image / image.max(), rtol=1e-6)
    assert not list((home / "npy").glob("*_anomaly.png"))
    predict(home / "run", home / "in", home / "nifti", maps="nifti")
    assert_allclose(
        nib.load(home / "nifti" / "a_anomaly.nii.gz").get_fdata(), image / image.max(), rtol=1e-6
    )
    assert_array_equal(nib.load(home / "nifti" / "v_anomaly.nii.gz").affine, affine)


def test_an_interrupted_evaluation_goes_on(tmp_path, untrained_run, use):
    workdir = tmp_path / "run"
    evaluation.shutil.copytree(untrained_run, workdir)
    facts = json.loads((workdir / "training.json").read_text())
    (workdir / "training.json").write_text(json.dumps(facts | {"notes": []}))
    dataset = phantom_dataset(
        region="brain", size=32, num_train=2, num_validation=2, num_test=3, seed=3
    )
    run = use(MadeUpRun(dies_at=2))
    run.config, run.channels = read_config(workdir), 1
    run.config.num_resamples = 5
    run.decisions = Decisions.from_json((workdir / "decisions.json").read_text())
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(run.config, workdir, dataset)
    assert not (workdir / "report.html").exists()
    done, run.calls = run.calls, []
    results = evaluation.evaluate(run.config, workdir, dataset)
    assert done + run.calls == [entry.case_id for entry in dataset.test]
    assert results["data"]["num_test"] == 3
    kept = evaluation.read_statistics(workdir)
    assert sorted(case.case_id for case in kept) == sorted(done + run.calls)
    assert results["curves"] == json.loads((workdir / "metrics.json").read_text())["curves"]
    # A finished one starts afresh: test images may have changed in between.
    run.calls = []
    again = evaluation.evaluate(run.config, workdir, dataset)
    assert len(run.calls) == 3
    assert again["pixel"] == results["pixel"]
