"""A run on volumes: training in patches, inference by windows, maps in the input's geometry."""

import itertools
import json
import shutil

import cv2
import jax
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.signal import windows as scipy_windows
from scipy.special import entr

from caal_jax import localise, parallel
from caal_jax.checkpoint import Checkpoints
from caal_jax.confidence.calibration import Calibration
from caal_jax.data.case import Case, Geometry
from caal_jax.data.phantom import make_volume, phantom_dataset
from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.evaluate import evaluate
from caal_jax.export import export
from caal_jax.localise import build_localiser, build_predictor, case_stack, new_models
from caal_jax.predict import predict
from caal_jax.study.grid import study_config
from caal_jax.study.run import run_study
from caal_jax.train import check_fields, train
from caal_jax.windows import windows_of


@pytest.fixture(scope="module", autouse=True)
def _quick():
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caal_jax.train.MIN_SYNTHETIC", 2)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def tiny_config(**changes):
    config = training_config()
    config.dataset, config.region, config.patch_size = "mood", "brain", "16,16,16"
    config.width, config.depth, config.task, config.equalise = 4, 2, "fpi", "none"
    config.batch_size, config.num_steps, config.warmup_steps = 4, 3, 1
    config.log_steps, config.checkpoint_steps, config.num_resamples = 1, 2, 5
    config.num_members, config.num_patches = 2, 1
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def dataset():
    return phantom_dataset(
        region="brain", size=32, num_train=3, num_validation=1, num_test=2, seed=3
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dataset):
    """A trained and evaluated workdir: (workdir, config, results)."""
    workdir = tmp_path_factory.mktemp("finished")
    train(tiny_config(), workdir, dataset)
    return workdir, tiny_config(), evaluate(tiny_config(), workdir, dataset)


def members(workdir, config):
    template = jax.eval_shape(lambda: new_models(config, 1))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(model=template)[1]["model"]


def test_a_run_on_volumes_is_scored_and_reported(finished, dataset):
    workdir, _, results = finished
    assert results["data"]["num_test"] == 2
    assert results["pixel"]["ap"] is not None
    assert 0 < results["confidence"]["held_out"]["image_auroc"] <= 1
    assert (workdir / "report.html").stat().st_size > 0
    found = nib.load(workdir / "predictions" / "test_00000_anomaly.nii.gz")
    assert found.shape == (32, 32, 32)
    assert_allclose(found.affine, dataset.test[0].load().geometry.affine)


def test_resuming_equals_the_unbroken_run(tmp_path, finished, dataset):
    workdir, config, _ = finished
    broken = tmp_path / "broken"
    shutil.copytree(workdir, broken)
    shutil.rmtree(broken / "checkpoints" / "3")
    (broken / "decisions.json").unlink()
    train(config, broken, dataset)
    jax.tree.map(assert_array_equal, members(workdir, config), members(broken, config))
    assert (broken / "decisions.json").read_text() == (workdir / "decisions.json").read_text()


def test_eight_devices_equal_one(tmp_path, monkeypatch, finished, dataset):
    workdir, config, _ = finished
    real_plan = parallel.plan
    monkeypatch.setattr(
        parallel, "plan", lambda m, b, _=None: real_plan(m, b, devices=jax.local_devices()[:1])
    )
    train(config, tmp_path, dataset)
    eight, one = members(workdir, config), members(tmp_path, config)
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=2e-6), eight, one)
    decisions = [json.loads((at / "decisions.json").read_text()) for at in (workdir, tmp_path)]
    assert_allclose(decisions[0]["threshold"], decisions[1]["threshold"], atol=1e-3)


def test_predict_keeps_the_geometry_of_volumes_and_skips_pictures(tmp_path, finished):
    source = tmp_path / "in"
    source.mkdir()
    # Thinner than a patch along one axis.
    volume = make_volume(77, region="brain", size=32)[:28, 3:31, 10:22]
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(volume, affine), source / "scan.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.float32), affine), source / "flat.nii")
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20, 2), np.float32), affine), source / "four.nii")
    cv2.imwrite(str(source / "picture.png"), np.uint8(np.arange(400).reshape(20, 20) % 251))
    rows, skipped = predict(finished[0], source, tmp_path / "out")
    assert [row[0] for row in rows] == ["scan.nii.gz"]
    told = "\n".join(sorted(skipped))
    for name, reason in (("flat", "same value"), ("four", "2"), ("picture", "a 2-D image")):
        assert name in told
        assert reason in told
    for kind in ("anomaly", "uncertainty"):
        found = nib.load(tmp_path / "out" / f"scan_{kind}.nii.gz")
        assert found.shape == volume.shape
        assert_array_equal(found.affine, affine)
        assert 0 <= found.get_fdata().min() <= found.get_fdata().max() <= 1


def test_a_run_on_volumes_is_not_exported(tmp_path, finished):
    with pytest.raises(InputError, match="found a run on volumes, in patches of 16,16,16"):
        export(finished[0], tmp_path)


@pytest.mark.parametrize("task", ["nsa", "fpi*2+fpi_blob", "cutpaste,100@nsa"])
def test_tasks_for_pictures_are_refused_at_the_start(tmp_path, task):
    with pytest.raises(InputError, match=r"config\.task: found '(nsa|fpi_blob)', which does not"):
        train(tiny_config(task=task), tmp_path, None)


@pytest.mark.parametrize("name", ["fpi_wrn", "nsa_resnet18"])
def test_localisers_of_pictures_are_refused_at_the_start(tmp_path, name):
    told = rf"config\.localiser: found '{name}', which is for images"
    with pytest.raises(InputError, match=told):
        train(tiny_config(localiser=name, depth=0), tmp_path, None)


@pytest.mark.parametrize("way", ["source_guidance", "both_guidance", "label_only"])
def test_ways_of_equalising_take_volumes(way):
    check_fields(tiny_config(task="fpi", equalise=way))


def test_a_study_is_of_slices(tmp_path):
    with pytest.raises(InputError, match=r"config\.patch_size: found '16,16,16'"):
        run_study(study_config(tiny_config()), tmp_path)


SHAPE, PATCH = (13, 9, 8), (8, 8, 8)


def lively(config):
    """Members as training would leave them: new ones answer the same everywhere."""
    models = jax.jit(lambda: new_models(config, 1))()
    rng = np.random.default_rng(1)
    noise = lambda a: np.asarray(a) + rng.normal(0, 0.4, a.shape).astype(np.float32)  # noqa: E731
    return {"key": np.asarray(models["key"]), "params": jax.tree.map(noise, models["params"])}


def loop(config, models, image):
    """Mean, second moment and mean entropy of all samples of all windows, blended in float64."""
    sample = jax.jit(build_localiser(config).sample, static_argnums=3)
    bells = [scipy_windows.gaussian(side, side / 8) for side in PATCH]
    weight = np.einsum("a,b,c->abc", *bells)
    starts = [
        [start for start, _ in windows_of(n, side)] for n, side in zip(SHAPE, PATCH, strict=True)
    ]
    sums, total = np.zeros((3, *SHAPE)), np.zeros(SHAPE)
    for corner in itertools.product(*starts):
        here = tuple(slice(a, a + n) for a, n in zip(corner, PATCH, strict=True))
        samples = []
        for m in range(config.num_members):
            params = jax.tree.map(lambda a, i=m: a[i], models["params"])
            key = jax.random.wrap_key_data(models["key"][m])
            key = jax.random.fold_in(key, localise.PREDICT_DRAW)
            samples.append(sample(params, key, image[here][None], config.num_samples)[:, 0, ..., 0])
        p = np.float64(np.concatenate(samples))
        moments = p.mean(0), (p**2).mean(0), (entr(p) + entr(1 - p)).mean(0)
        sums[(slice(None), *here)] += weight * np.stack(moments)
        total[here] += weight
    return sums / total


@pytest.mark.parametrize("equalise", ["none", "preprocess"])
def test_the_belief_blends_all_samples_of_all_windows(equalise):
    config = tiny_config(patch_size="8,8,8", depth=1, num_samples=2, equalise=equalise)
    models = lively(config)
    predictor = build_predictor(config, models)
    raw = np.random.default_rng(2).integers(0, 1000, (*SHAPE, 1)).astype(np.int16)
    raw[:, 6:, 5:] = 0
    case = Case("a", raw, Geometry((1.0, 1.0, 1.0)))
    stack = case_stack(case, image_size=0, channels=1, patch=PATCH)
    found = predictor.localise(stack)
    image, inside = predictor.prepare(stack.raw, stack.low, stack.high)
    mean, second, entropy = loop(config, models, np.float32(image))
    assert_allclose(found.belief.mean, mean, atol=1e-3)
    assert_allclose(found.belief.variance, second - mean**2, atol=2e-3)
    assert_allclose(found.belief.expected_entropy, entropy, atol=2e-3)
    assert found.belief.variance.max() > 0.02
    # The foreground of every sample counts once, however many windows see it.
    assert_array_equal(found.foreground, inside[..., 0])
    assert 0.3 < inside.mean() < 1
    counts = found.sketches.count.sum((1, 2))
    assert_allclose(counts, np.full(2 * config.num_samples, inside.sum()), rtol=1e-4)
    # Then the maps, in place of the belief.
    logit = np.log(mean / (1 - mean)) / 2 + 0.1
    maps = predictor.maps(Calibration(2.0, 0.1), found.belief)
    assert_allclose(maps[0], 1 / (1 + np.exp(-logit)), atol=2e-3)
    assert_allclose(maps[3], np.sqrt(np.maximum(second - mean**2, 0)), atol=0.01)
    assert_allclose(predictor.picture(stack, found), image, atol=1e-3)
