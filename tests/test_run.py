"""The whole path on tiny data: train, resume, evaluate, predict, on one device and on eight."""

import functools
import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax import localise, parallel
from caal_jax.case_statistics import rank_scale
from caal_jax.checkpoint import Checkpoints
from caal_jax.data.phantom import make_volume, phantom_dataset
from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.evaluate import evaluate, read_history
from caal_jax.main import train_and_evaluate
from caal_jax.predict import output_names, predict
from caal_jax.train import train

DESIGN_KEYS = {
    "pixel": {"ap", "auroc", "aupro", "best_dice", "fpr95"},
    "image": {"ap", "auroc"},
    "confidence": {"ece", "brier", "nll", "aurc", "error_auroc"},
    "data": {"name", "is_phantom", "num_train", "num_test"},
    "run": {"config", "seed", "versions", "device", "wall_seconds"},
}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Few synthetic cases, and programs that run a few times are not worth compiling well."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caal_jax.train.MIN_SYNTHETIC", 4)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def tiny_config(**changes):
    config = training_config()
    config.dataset, config.region = "mood", "brain"
    config.image_size, config.width, config.depth = 32, 4, 2
    config.batch_size, config.num_steps, config.warmup_steps = 8, 4, 1
    config.log_steps, config.checkpoint_steps, config.num_resamples = 1, 2, 20
    config.num_patches = 1
    config.num_members = 1
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def dataset():
    return phantom_dataset(
        region="brain", size=32, num_train=3, num_validation=2, num_test=4, seed=3
    )


def members(workdir, config):
    template = jax.eval_shape(lambda: localise.new_models(config, 1))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step, found = checkpoints.restore(model=template)
    return step, found["model"]


def new_models(config):
    return jax.jit(lambda: localise.new_models(config, 1))()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dataset):
    """A trained and evaluated workdir of two members: (workdir, config, results)."""
    workdir = tmp_path_factory.mktemp("finished")
    config = tiny_config(num_members=2, dropout=0.2)
    train(config, workdir, dataset)
    return workdir, config, evaluate(config, workdir, dataset)


def test_a_run_leaves_what_it_promises(finished):
    workdir, _, results = finished
    assert json.loads((workdir / "metrics.json").read_text()) == results
    for section, keys in DESIGN_KEYS.items():
        assert keys <= results[section].keys()
    confidence = results["confidence"]
    assert {"by_uncertainty", "image", "region", "held_out"} <= confidence.keys()
    assert {"ece", "nll", "std_coverage_90", "image_auroc"} <= confidence["held_out"].keys()
    assert (workdir / "predictions" / "regions.csv").read_text().startswith("case_id,region,")
    assert results["data"]["is_phantom"]
    for name in ("config.json", "metrics.jsonl", "decisions.json", "report.html"):
        assert (workdir / name).stat().st_size > 0
    assert "phantom" in (workdir / "report.html").read_text().lower()
    assert list((workdir / "tensorboard").glob("events*"))
    with np.load(workdir / "fingerprints.npz") as seen:
        assert len(seen["names_3"]) == results["data"]["num_train"]
    assert not any("LEAK" in note for note in results["data"]["notes"])
    lines = (workdir / "predictions" / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 4
    assert len(list((workdir / "predictions").glob("*_anomaly.nii.gz"))) == 4
    assert [line["step"] for line in read_history(workdir)] == [1, 2, 3, 4]


def test_resuming_equals_the_unbroken_run(tmp_path, finished, dataset):
    workdir, config, _ = finished
    broken = tmp_path / "broken"
    shutil.copytree(workdir, broken)
    shutil.rmtree(broken / "checkpoints" / "4")
    (broken / "decisions.json").unlink()
    train(config, broken, dataset)
    (step, whole), (step_again, resumed) = members(workdir, config), members(broken, config)
    assert step == step_again == 4
    jax.tree.map(assert_array_equal, whole, resumed)

    def losses(path):
        return [line["loss"] for line in read_history(path)]

    assert losses(broken) == losses(workdir)
    assert (broken / "decisions.json").read_text() == (workdir / "decisions.json").read_text()


def ensemble_config(num_members, **changes):
    """Twenty steps of a smaller network. A mixture: all devices of a member share its task."""
    steps = {"num_steps": 20, "log_steps": 20, "checkpoint_steps": 10}
    options = {"image_size": 16, "depth": 1, "dropout": 0.2, "task": "fpi+cutpaste", **steps}
    return tiny_config(num_members=num_members, **options | changes)


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory, dataset):
    """`on_eight(num_members)`: the workdir of an ensemble trained on eight devices."""

    @functools.cache
    def trained(num_members):
        workdir = tmp_path_factory.mktemp("eight")
        train(ensemble_config(num_members), workdir, dataset)
        return workdir

    return trained


@pytest.mark.parametrize("num_members", [1, 3, 5, 8])
def test_eight_devices_equal_one(tmp_path, monkeypatch, dataset, on_eight, num_members):
    # Three members: two devices each and two idle, or three rounds.
    config = ensemble_config(num_members)
    _, eight = members(on_eight(num_members), config)
    real_plan = parallel.plan
    monkeypatch.setattr(
        parallel, "plan", lambda m, b, _=None: real_plan(m, b, devices=jax.local_devices()[:1])
    )
    train(config, tmp_path, dataset)
    _, one = members(tmp_path, config)
    if num_members >= 5:  # whole batches on one device each: nothing is added in another order
        jax.tree.map(assert_array_equal, eight, one)
    # Measured: 1.8e-7. Muon could enlarge what rounding leaves of a gradient; it does not here.
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), eight, one)
    start = new_models(config)["params"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one["params"], start)
    assert min(jax.tree.leaves(moved)) > 1e-3
    decisions = [
        localise.Decisions.from_json((workdir / "decisions.json").read_text())
        for workdir in (on_eight(num_members), tmp_path)
    ]
    assert_allclose(decisions[0].healthy_scores, decisions[1].healthy_scores, atol=1e-7)
    assert_allclose(decisions[0].pixel, decisions[1].pixel, atol=1e-6)


def member_1(tree):
    return jax.tree.map(lambda a: a[1], tree)


def test_a_member_alone_or_added_is_that_of_the_ensemble(tmp_path, dataset, on_eight):
    _, three = members(on_eight(3), ensemble_config(3))
    train(ensemble_config(3, members="1"), tmp_path / "alone", dataset)
    _, alone = members(tmp_path / "alone" / "members" / "1", ensemble_config(1))
    grown, config = tmp_path / "grown", ensemble_config(2)
    shutil.copytree(on_eight(1), grown)
    train(config, grown, dataset)
    assert (grown / "members" / "1" / "checkpoints").is_dir()
    both = localise.read_members(grown, config, 1)
    for found in (jax.tree.map(lambda a: a[0], alone), member_1(both)):
        jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), found, member_1(three))
    others = jax.tree.map(lambda a: np.abs(a[1] - a[0]).max(), both["params"])
    assert min(jax.tree.leaves(others)) > 1e-3
    results = evaluate(config, grown, dataset)
    assert results["run"]["config"]["num_members"] == 2
    decisions = json.loads((grown / "decisions.json").read_text())
    assert decisions != json.loads((on_eight(1) / "decisions.json").read_text())


def test_accumulated_batches_are_the_whole_ones_and_go_on(tmp_path, dataset, on_eight):
    config = ensemble_config(3, accumulation=2)
    train(config, tmp_path, dataset)
    _, whole = members(on_eight(3), ensemble_config(3))
    _, found = members(tmp_path, config)
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), found, whole)
    losses = [read_history(workdir)[-1]["loss"] for workdir in (tmp_path, on_eight(3))]
    assert_allclose(*losses, atol=1e-6)
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    train(config, tmp_path, dataset)
    step, resumed = members(tmp_path, config)
    assert step == 20
    jax.tree.map(assert_array_equal, resumed, found)


def test_a_member_does_not_depend_on_the_ensemble():
    alone, many = (new_models(tiny_config(num_members=n)) for n in (1, 3))
    jax.tree.map(lambda a, b: assert_array_equal(a[0], b[0]), alone, many)
    kernels = jax.tree.leaves(many["params"])
    assert any(np.abs(k[0] - k[1]).max() > 0 for k in kernels)


def test_a_workdir_of_another_config_is_refused(finished, dataset):
    workdir, config, _ = finished
    other = config.copy_and_resolve_references()
    other.learning_rate = 0.5
    with pytest.raises(InputError, match="learning_rate"):
        train(other, workdir, dataset)
    report = (workdir / "report.html").read_bytes()
    with pytest.raises(InputError, match="learning_rate"):
        train_and_evaluate(other, workdir, mode="evaluate")
    assert (workdir / "report.html").read_bytes() == report


def test_the_modes_train_and_evaluate_apart(tmp_path, finished, dataset, monkeypatch, capsys):
    workdir, config, results = finished
    monkeypatch.setattr("caal_jax.main.load_dataset", lambda config: dataset)
    half = tmp_path / "half"
    shutil.copytree(workdir, half)
    (half / "decisions.json").unlink()
    shutil.rmtree(half / "checkpoints" / "4")
    (half / "metrics.json").unlink()
    assert train_and_evaluate(config, half, mode="train") is None
    assert not (half / "metrics.json").exists()
    jax.tree.map(assert_array_equal, members(workdir, config), members(half, config))
    found = train_and_evaluate(config, half, mode="evaluate")
    assert found["pixel"] == results["pixel"]
    assert "report: " in capsys.readouterr().out


@pytest.mark.parametrize("field", ["task", "equalise", "localiser", "augment"])
def test_unknown_names_are_refused(tmp_path, dataset, field):
    with pytest.raises(InputError, match=f"config.{field}"):
        train(tiny_config(**{field: "nonsense"}), tmp_path, dataset)


def test_predicting_needs_a_finished_run(tmp_path):
    with pytest.raises(InputError, match="no config"):
        localise.FinishedRun.load(tmp_path)


def test_predict_keeps_the_geometry_and_survives_bad_files(tmp_path, finished):
    workdir, _, _ = finished
    source = tmp_path / "in"
    source.mkdir()
    volume = make_volume(77, region="brain", size=32)[:, :28, :20]
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, code=2)
    nib.save(image, source / "scan.nii.gz")
    (source / "broken.nii.gz").write_bytes(b"not an image")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), affine), source / "flat.nii")

    rows, skipped = predict(workdir, source, tmp_path / "out")

    assert [row[0] for row in rows] == ["scan.nii.gz"]
    assert len(skipped) == 2
    assert any("broken.nii.gz" in message for message in skipped)
    for kind in ("anomaly", "uncertainty"):
        found = nib.load(tmp_path / "out" / f"scan_{kind}.nii.gz")
        assert found.shape == volume.shape
        assert_array_equal(found.affine, affine)
        assert found.header["sform_code"] == 2
        assert 0 <= found.get_fdata().min() <= found.get_fdata().max() <= 1
    assert (tmp_path / "out" / "scan.png").stat().st_size > 0
    again, _ = predict(workdir, source / "scan.nii.gz", tmp_path / "again")
    assert again[0][1:] == rows[0][1:]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty folder"):
        predict(workdir, tmp_path / "empty", tmp_path / "x")


def test_scores_of_a_case_ignore_the_other_cases(finished, dataset):
    run = localise.FinishedRun.load(finished[0])
    case = dataset.test[0].load()
    alone = run.predict(case)
    run.predict(dataset.test[1].load())
    again = run.predict(case)
    assert_array_equal(alone.anomaly, again.anomaly)
    assert alone.score == again.score


def test_output_names_stay_inside_and_apart(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "b" / "..x.png"]
    names = output_names(paths, tmp_path)
    assert len(set(names)) == 3
    assert all("/" not in name and not name.startswith(".") for name in names)


def test_rank_scale_keeps_order_and_tells_small_ones_apart():
    p = np.array([0.0, 1e-5, 1e-4, 1e-3, 0.5, 0.999, 1.0])
    ranked = rank_scale(p)
    assert np.all(np.diff(ranked) > 0)
    assert np.diff(ranked[1:4]).min() > 0.05
    assert ranked.min() >= 0
    assert ranked.max() <= 1
