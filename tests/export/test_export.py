"""One file in, the live run's answers out: on other sizes, depths, types and numbers of cases."""

import ast
import dataclasses
import importlib.util
import json

import jax
import jax.export
import numpy as np
import pytest
from numpy.testing import assert_allclose

from caal_jax import exported
from caal_jax.confidence.decision import verdict
from caal_jax.data import Case, Geometry
from caal_jax.data.letterbox import letterbox, unletterbox
from caal_jax.data.phantom import make_volume
from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.export import build_model, export, from_square, model_card, place, to_square, verdicts
from caal_jax.localise import FinishedRun, new_models

MAPS = ("anomaly", "epistemic", "aleatoric")
NUMBERS = ("score", "score_std", "probability", "p_value")


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Programs that run once are not worth compiling well."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def output(untrained_run, tmp_path_factory):
    output = tmp_path_factory.mktemp("shipped")
    export(untrained_run, output)
    return output


@pytest.fixture(scope="module")
def predict(output):
    """What the loader that lies beside the artefact returns."""
    spec = importlib.util.spec_from_file_location("load_model", output / "load_model.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    return loader.load(output / "model.jaxexport")


def body(seed, dtype, *, slices):
    """Slices of a phantom, none of them square nor of the model's size."""
    volume = make_volume(seed, region="brain", size=64)[24 : 24 + slices, 5:55, :37, None]
    volume = np.float32(volume) / np.float32(volume.max())
    return volume if dtype == np.float32 else np.round(volume * 4000).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "cases", "slices", "spacing"),
    [(np.float32, 2, 3, (0.7, 1.1)), (np.uint16, 1, 1, (1.0, 1.0))],
)
def test_exported_equals_live(untrained_run, predict, dtype, cases, slices, spacing):
    run = FinishedRun.load(untrained_run)
    images = np.stack([body(seed, dtype, slices=slices) for seed in range(cases)])
    found = predict(images, spacing)
    for number, image in enumerate(images):
        volume = slices > 1
        geometry = Geometry(spacing_mm=(3.0, *spacing) if volume else spacing)
        live = run.predict(Case("case", image if volume else image[0], geometry))
        assert live.anomaly.std() > 0.03
        assert live.epistemic.max() > 0.01
        for name in MAPS:
            shipped = found[name][number].reshape(getattr(live, name).shape)
            assert_allclose(shipped, getattr(live, name), atol=1e-6, err_msg=name)
        assert (found["foreground"][number].reshape(live.foreground.shape) == live.foreground).all()
        for name in NUMBERS:
            assert_allclose(found[name][number], getattr(live, name), atol=1e-6, err_msg=name)
        assert found["verdict"][number] == live.verdict


SIDES = [(20, 17), (50, 37), (33, 70), (32, 32), (9, 64)]


@jax.jit
def there_and_back(images, maps, spacing, is_integer):
    sides = images.shape[1:3]
    box = place(*sides, spacing, 32)
    return to_square(images, box, 32, is_integer), from_square(maps, box, *sides)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.9)])
def test_resizing_equals_that_of_the_live_path(sides, spacing):
    rng = np.random.default_rng(sides)
    image = np.float32(rng.random((*sides, 2)))
    square, placement = letterbox(image, size=32, spacing_mm=spacing)
    found, back = there_and_back(image[None], square[None, ..., 0], np.float32(spacing), False)
    assert_allclose(found[0], square, atol=2e-6)
    # OpenCV keeps positions in float32, these here are exact.
    assert_allclose(back[0], unletterbox(square[..., 0], placement), atol=1e-5)


@pytest.mark.parametrize("sides", SIDES)
def test_integers_stay_integers(sides):
    image = np.random.default_rng(sides).integers(0, 4000, (*sides, 1), np.uint16)
    square, _ = letterbox(image, size=32, spacing_mm=(1.0, 1.0))
    images, empty = np.float32(image)[None], np.zeros((1, 32, 32), np.float32)
    found = np.asarray(there_and_back(images, empty, np.float32([1, 1]), True)[0][0])
    # A half is rounded to one side by OpenCV's fixed point arithmetic where it enlarges.
    assert np.abs(found - square).max() <= (1 if min(sides) < 32 else 0)


def test_the_verdict_is_that_of_the_live_path():
    scores, stds = (a.ravel() for a in np.meshgrid(np.linspace(0, 1, 11), [0.0, 0.05, 0.3]))
    for z in (0.0, 1.0):
        codes = verdicts(np.float32(scores), np.float32(stds), threshold=0.47, z=z)
        words = [["normal", "abnormal", "abstain"][code] for code in codes]
        assert words == [
            verdict(score, threshold=0.47, score_std=std, z=z)
            for score, std in zip(scores, stds, strict=True)
        ]


@pytest.mark.parametrize("localiser", ["phiseg", "probabilistic_unet"])
def test_any_number_of_cases_for_localisers_that_draw(untrained_run, localiser):
    run = FinishedRun.load(untrained_run)
    config = training_config()
    config.localiser, config.image_size, config.num_members = localiser, 32, 1
    shapes = jax.eval_shape(lambda: new_models(config, 1))
    members = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    run.config = config
    b, n, h, w = jax.export.symbolic_shape("b, n, h, w")
    found = jax.eval_shape(
        build_model(run, members),
        jax.ShapeDtypeStruct((b, n, h, w, 1), np.float32),
        *[jax.ShapeDtypeStruct(shape, np.float32) for shape in ((b,), (b,), (2,))],
        jax.ShapeDtypeStruct((), np.bool_),
    )
    assert found["anomaly"].shape == (b, n, h, w)
    assert found["verdict"].shape == (b,)


def test_the_artefact_is_for_every_platform(output):
    data = (output / "model.jaxexport").read_bytes()
    artefact = jax.export.deserialize(bytearray(data))
    assert set(artefact.platforms) == {"cpu", "cuda", "tpu"}
    assert [str(side) for side in artefact.in_avals[0].shape] == ["b", "n", "h", "w", "1"]


def test_the_loader_is_short_and_needs_only_jax_and_numpy(output):
    text = (output / "load_model.py").read_text()
    assert len(text.splitlines()) < 30
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    assert names == {"jax", "numpy"}


def test_what_cannot_be_used_is_told(tmp_path, output, predict):
    broken = tmp_path / "model.jaxexport"
    for data in (b"", b"not an artefact", (output / "model.jaxexport").read_bytes()[:-999]):
        broken.write_bytes(data)
        with pytest.raises(ValueError, match="cannot read it"):
            exported.load(broken)
    with pytest.raises(ValueError, match=r"want \(B, N, H, W, 1\)"):
        predict(np.zeros((1, 8, 8)))
    with pytest.raises(InputError, match="config"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def small_artefact(platform):
    shapes = ((1, 1, 4, 4, 1), (1,), (1,), (2,))
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    made = jax.export.export(jax.jit(lambda *all_of_it: all_of_it[0]), platforms=[platform])
    return made(*arguments, jax.ShapeDtypeStruct((), np.bool_))


def test_an_artefact_for_another_platform_or_version_is_refused(tmp_path):
    images, path = np.zeros((1, 1, 4, 4, 1)), tmp_path / "model.jaxexport"
    path.write_bytes(small_artefact("tpu").serialize())
    with pytest.raises(ValueError, match=r"exported for platforms.*tpu.*used on.*cpu"):
        exported.load(path)(images)
    here = small_artefact("cpu")
    module = bytearray(here.mlir_module_serialized)
    module[4] += 2  # after the letters ML\xefR, the version of the format
    newer = dataclasses.replace(here, mlir_module_serialized=bytes(module))
    path.write_bytes(newer.serialize())
    with pytest.raises(ValueError, match=r"model.jaxexport: jax [\d.]+ cannot run it.*deserialize"):
        exported.load(path)(images)


def test_the_card_tells_data_results_and_limits(untrained_run, output):
    card = (output / "model_card.md").read_text()
    for text in ("not for clinical use", "phantom", "before evaluation", "4 held-out healthy"):
        assert text in card
    results = {
        "data": {
            "name": "mine",
            "is_phantom": False,
            "stamp": "planted",
            "num_train": 7,
            "num_test": 3,
            "notes": ["One case was skipped."],
        },
        "pixel": {"ap": 0.25, "ap_ci95": [0.125, 0.5], "aupro": None},
        "image": {"auroc": 0.75, "auroc_ci95": [None, None]},
        "confidence": {},
    }
    evaluated = untrained_run / "metrics.json"
    evaluated.write_text(json.dumps(results))
    try:
        card = model_card(FinishedRun.load(untrained_run), untrained_run)
    finally:
        evaluated.unlink()
    assert "| pixel ap | 0.250 | 0.125 to 0.500 |" in card
    assert "| image auroc | 0.750 |  |" in card
    for text in ("training cases: 7", "**PLANTED**", "- One case was skipped."):
        assert text in card
    assert "aupro" not in card
