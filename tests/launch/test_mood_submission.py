"""The submission without a container: phantoms in MOOD's layout in, the official score out."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from caal_jax.data.phantom import SLICE_AXES, phantom_dataset
from caal_jax.errors import InputError
from caal_jax.localise import FinishedRun
from caal_jax.metrics.protocols import mood

FOLDER = Path(__file__).parents[2] / "launch" / "mood_submission"
REGIONS = {"brain": "brain", "abdom": "abdomen"}
AFFINE = np.diag([-2.0, 1.5, 3.0, 1.0])


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Programs that run once are not worth compiling well."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """brain/ and abdom/ with toy/ and toy_label/{pixel,sample}/, a broken volume in each."""
    root = tmp_path_factory.mktemp("mood")
    for name, region in REGIONS.items():
        home = root / name
        for part in ("toy", "toy_label/pixel", "toy_label/sample"):
            (home / part).mkdir(parents=True)
        made = phantom_dataset(
            region=region, size=32, num_train=0, num_validation=0, num_test=3, seed=5
        )
        for number, entry in enumerate(made.test):
            case, file = entry.load(), f"{number:05d}.nii.gz"
            image, mask = (
                # No two sides alike, so that a mistaken axis shows.
                np.moveaxis(np.float32(a)[4:28, 2:30], 0, SLICE_AXES[region])
                for a in (case.image[..., 0], case.mask)
            )
            nib.save(nib.Nifti1Image(image, AFFINE), home / "toy" / file)
            nib.save(nib.Nifti1Image(mask, AFFINE), home / "toy_label" / "pixel" / file)
            (home / "toy_label" / "sample" / f"{file}.txt").write_text(f"{int(mask.any())}")
        (home / "toy" / "broken.nii.gz").write_bytes(b"not a volume")
        shutil.copy(home / "toy_label/pixel/00000.nii.gz", home / "toy_label/pixel/broken.nii.gz")
        (home / "toy_label" / "sample" / "broken.nii.gz.txt").write_text("1")
    return root


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, untrained_run):
    """What the container has in /workspace."""
    workspace = tmp_path_factory.mktemp("workspace")
    for path in FOLDER.iterdir():
        if path.suffix in (".py", ".sh"):
            shutil.copy(path, workspace)
    for name, region in REGIONS.items():
        shutil.copytree(untrained_run, workspace / name)
        config = json.loads((workspace / name / "config.json").read_text()) | {"region": region}
        (workspace / name / "config.json").write_text(json.dumps(config))
    return workspace


@pytest.fixture
def predict_mood(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "predict_mood", raising=False)
    import predict_mood

    return predict_mood


def test_the_entry_scripts_have_the_challenge_s_names_and_call(tmp_path):
    spy = tmp_path / "python"
    spy.write_text('#!/bin/sh\necho "$@"\n')
    spy.chmod(spy.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert len(list(FOLDER.glob("run_*.sh"))) == 4
    for mode in ("pixel", "sample"):
        for region in REGIONS:
            script = FOLDER / f"run_{mode}_{region}.sh"
            command = ["sh", script, "/mnt/data", "/mnt/pred"]
            found = subprocess.run(command, env=environment, capture_output=True, check=True)
            assert found.stdout.decode().split() == [
                f"{FOLDER}/predict_mood.py",
                f"--mode={mode}",
                f"--run={FOLDER}/{region}",
                "--input=/mnt/data",
                "--output=/mnt/pred",
            ]


def test_an_entry_script_runs_from_its_folder(tmp_path, toys, workspace):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    script = workspace / "run_pixel_abdom.sh"
    command = ["sh", script, toys / "abdom" / "toy", tmp_path / "pred"]
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "broken.nii.gz" in found.stderr
    result = mood.evaluate_pixel(tmp_path / "pred", toys / "abdom" / "toy_label" / "pixel")
    assert sorted(result.outcome.values()) == ["missing", "scored", "scored", "scored"]
    volume = nib.load(tmp_path / "pred" / "00001.nii.gz")
    assert np.array_equal(volume.affine, AFFINE)
    assert volume.get_data_dtype() == np.float32


@pytest.mark.parametrize("region", REGIONS)
def test_predictions_are_scored_by_the_official_protocol(
    tmp_path, toys, workspace, predict_mood, region
):
    run = FinishedRun.load(workspace / region)
    labels = toys / region / "toy_label"
    for mode in ("pixel", "sample"):
        (tmp_path / mode).mkdir()
        failed = predict_mood.predict_folder(run, mode, toys / region / "toy", tmp_path / mode)
        assert len(failed) == 1
    pixel = mood.evaluate_pixel(tmp_path / "pixel", labels / "pixel")
    assert pixel.outcome == {f"0000{n}.nii.gz": "scored" for n in range(3)} | {
        "broken.nii.gz": "missing"
    }
    sample = mood.evaluate_sample(tmp_path / "sample", labels / "sample")
    assert set(sample.outcome.values()) == {"scored"}
    assert 0 < pixel.score < 1
    assert 0 < sample.score <= 1
    # The label itself in the place of the prediction: axes and names are those of the challenge.
    abnormal = next(
        n for n in range(3) if nib.load(labels / f"pixel/0000{n}.nii.gz").get_fdata().any()
    )
    path = tmp_path / "pixel" / f"0000{abnormal}.nii.gz"
    axis = SLICE_AXES[run.config.region]
    case = predict_mood.read_image(labels / "pixel" / path.name, slice_axis=axis)
    predict_mood.write_volume(path, np.float32(case.image[..., 0]), case)
    again = nib.load(path)
    assert np.array_equal(again.get_fdata(), nib.load(labels / "pixel" / path.name).get_fdata())
    score = float((tmp_path / "sample" / "00000.nii.gz.txt").read_text())
    assert 0 < score < 1
    assert (tmp_path / "sample" / "broken.nii.gz.txt").read_text() == "0"


def test_nan_never_reaches_the_evaluation(tmp_path, toys, predict_mood):
    path = toys / "brain" / "toy" / "00000.nii.gz"
    case = predict_mood.read_image(path, slice_axis=2)
    values = np.full(case.image.shape[:-1], np.nan)
    values[0], values[1] = 7.0, -7.0
    predict_mood.write_volume(tmp_path / path.name, values, case)
    written = nib.load(tmp_path / path.name).get_fdata()
    assert set(np.unique(written)) == {0.0, 1.0}
    assert (written == 1).sum() == values[0].size


def test_a_folder_without_a_usable_volume_is_an_error(tmp_path, workspace, predict_mood):
    run = FinishedRun.load(workspace / "brain")
    with pytest.raises(InputError, match=r"among 0 file\(s\)"):
        predict_mood.predict_folder(run, "pixel", tmp_path, tmp_path)


@pytest.mark.parametrize("recipe", ["Dockerfile", "mood_submission/Dockerfile"])
def test_the_recipes_copy_what_is_there(recipe):
    launch = FOLDER.parent
    copied = re.findall(r"^COPY (.*) \S+$", (launch / recipe).read_text(), re.M)
    sources = [source for line in copied for source in line.split()]
    assert {"caal_jax", "pyproject.toml", "README.md", "LICENSE"} <= set(sources)
    for source in sources:
        assert "$" in source or list(launch.parent.glob(source)), source
    # What the build takes from each of two runs is all that prediction reads.
    of_runs = sorted(source for source in sources if "$" in source)
    read = ("checkpoints", "config.json", "decisions.json", "training.json")
    runs = ("ABDOM", "BRAIN") if "mood" in recipe else ()
    assert of_runs == [f"${{{run}}}/{name}" for run in runs for name in read]
