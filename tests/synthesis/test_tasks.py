"""What holds for every task: signatures, ranges, and images of any size."""

import functools
import importlib
import inspect
import pkgutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax import synthesis
from caal_jax.errors import InputError
from caal_jax.synthesis import fpi, probabilistic_pii

TASKS = synthesis.TASKS | {
    "reference": functools.partial(probabilistic_pii, form="reference"),
    # Boxes as large as can be: clones of fewer than 50 pixels are left out.
    "nsa": functools.partial(synthesis.nsa, half_width=((0.3, 0.45), (0.3, 0.45)), gamma=None),
}
# Others bring in colours, mix gradients or, as published, leave any range.
MIXTURES = {"fpi", "fpi_blob", "pii", "probabilistic_pii"}
SHAPES = [(16, 16, 1), (29, 37, 3)]


@functools.cache
def compiled(name):
    return jax.jit(
        lambda key, target, source, foreground: TASKS[name](
            key, target, source, foreground=foreground
        ),
        # It runs a few times: less to compile.
        compiler_options={"xla_backend_optimization_level": 0},
    )


def test_key_comes_first():
    names = [m.name for m in pkgutil.iter_modules(synthesis.__path__) if m.name != "__main__"]
    modules = [importlib.import_module(f"caal_jax.synthesis.{name}") for name in names]
    functions = [f for m in modules for f in vars(m).values() if inspect.isfunction(f)]
    random = [f for f in functions if "key" in inspect.signature(f).parameters]
    assert {f.__name__ for f in random} >= {*synthesis.TASKS, "draw", "draw_uniforms"}
    for f in random:
        assert next(iter(inspect.signature(f).parameters)) == "key", f


@pytest.mark.parametrize("task", synthesis.TASKS.values())
def test_options_are_keyword_only(task):
    kinds = [p.kind for p in inspect.signature(task).parameters.values()]
    assert kinds[:3] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 3
    assert set(kinds[3:]) <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    assert inspect.signature(task).parameters["foreground"].default is None


def foreground_of(kind, shape, rng):
    if kind == "specks":
        return rng.random((*shape[:2], 1)) < 0.05
    inside = np.arange(shape[1]) < {"none": 0, "half": shape[1] // 2, "all": shape[1]}[kind]
    return np.tile(inside[None, :, None], (shape[0], 1, 1))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["none", "specks", "half", "all"]))
def test_any_image_gives_a_legal_anomaly(name, shape, seed, kind):
    rng = np.random.default_rng(seed)
    # Flat, binary and noisy images.
    target, source = (
        rng.random(shape, np.float32) ** np.float32(rng.choice([0, 1, 9])) for _ in range(2)
    )
    foreground = foreground_of(kind, shape, rng)
    image, label, label_std = map(
        np.asarray, compiled(name)(jax.random.key(seed), target, source, foreground)
    )
    assert image.dtype == label.dtype == label_std.dtype == np.float32
    assert image.shape == shape
    assert label.shape == label_std.shape == (*shape[:2], 1)
    assert np.isfinite(image).all()
    assert np.isfinite(label_std).all()
    assert label_std.min() >= 0
    assert label.min() >= 0
    if name != "reference":
        assert label.max() <= 1
        limits = np.stack([target, source]) if name in MIXTURES else np.array([0, 1])
        assert limits.min() - 1e-6 <= image.min()
        assert image.max() <= limits.max() + 1e-6
    assert not np.any(label[~foreground])
    assert not np.any(label_std[~foreground])
    if name != "reference" and not foreground.any():
        assert_array_equal(image, target)


@pytest.mark.parametrize("name", synthesis.TASKS)
def test_eager_compiled_and_batched_are_one(name):
    task = synthesis.TASKS[name]
    rng = np.random.default_rng(5)
    targets, sources = rng.random((2, 3, 20, 24, 1), np.float32)
    keys = jax.random.split(jax.random.key(9), 3)
    batched = jax.jit(jax.vmap(task))(keys, targets, sources)
    for found in (task, jax.jit(task)):
        one = found(keys[1], targets[1], sources[1])
        for name_, a, b in zip(one._fields, one, batched, strict=True):
            assert_allclose(a, b[1], atol=2e-5, err_msg=name_)


@pytest.mark.parametrize("name", TASKS)
def test_keys_decide(name):
    shape = SHAPES[1]
    rng = np.random.default_rng(0)
    args = rng.random(shape, np.float32), rng.random(shape, np.float32)
    full = np.ones((*shape[:2], 1), bool)
    images = [compiled(name)(jax.random.key(k), *args, full).image for k in (0, 0, 1)]
    assert_array_equal(images[0], images[1])
    assert np.any(images[0] != images[2])


@pytest.mark.parametrize("task", synthesis.TASKS.values())
def test_batches_and_mismatches_are_refused(task):
    image = np.zeros((2, 16, 16, 1), np.float32)
    key = jax.random.key(0)
    with pytest.raises(InputError, match="vmap"):
        task(key, image, image)
    with pytest.raises(InputError, match="foreground"):
        task(key, image[0], image[0], foreground=np.ones((16, 16), bool))


@pytest.mark.parametrize("name", ["fpi_blob", "nsa"])
def test_tasks_for_pictures_refuse_volumes(name):
    volume = np.zeros((16, 16, 16, 1), np.float32)
    with pytest.raises(InputError, match="for volumes"):
        TASKS[name](jax.random.key(0), volume, volume)


def test_unknown_choices_are_named():
    image = np.zeros((16, 16, 1), np.float32)
    for field in ("form", "style", "weighting", "std"):
        with pytest.raises(InputError, match=field):
            probabilistic_pii(jax.random.key(0), image, image, **{field: "x"})
    with pytest.raises(InputError, match="relative_to"):
        fpi(jax.random.key(0), image, image, relative_to="second")
