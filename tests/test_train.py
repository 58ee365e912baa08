"""The corruption of a batch, one step of every task, the optimiser, and pieces of the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from caal_jax import parallel, train
from caal_jax.data.slices import Batch
from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.localisers import Localiser
from caal_jax.synthesis import TASKS
from caal_jax.synthesis.guidance import WAYS
from caal_jax.synthesis.mixture import pick_task, read_mixture
from caal_jax.train import (
    MUON_SCALE,
    build_corrupt,
    build_optimizer,
    build_step,
    choose,
    healthy,
    learning_rate,
)

SIZE = 32
QUICK = {"xla_backend_optimization_level": 0}
RNG = np.random.default_rng(0)


def smooth(number):
    """Dark pictures with some structure, (number, 32, 32, 1) in [0, 1]."""
    noise = ndimage.gaussian_filter(RNG.random((number, SIZE, SIZE, 1)), (0, 2, 2, 0), mode="wrap")
    return np.float32((noise - noise.min()) / np.ptp(noise)) ** 2


PAIR = smooth(8), smooth(8)


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    """Every training step here runs once or twice; compiling it well takes ten times as long."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def config_of(**changes):
    config = training_config()
    config.equalise, config.num_patches, config.source_jitter = "none", 1, False
    config.update(changes)
    return config


def corrupt_as(**changes):
    return jax.jit(build_corrupt(config_of(**changes)), compiler_options=QUICK)


@pytest.fixture(scope="module")
def corrupted():
    """64 corruptions of one pair by FPI, three patches at most: (target, Anomaly)."""
    target, source = RNG.uniform(0.2, 0.8, (2, SIZE, SIZE, 1)).astype(np.float32)
    inside = np.zeros((SIZE, SIZE, 1), bool)
    inside[4:28, 4:28] = True
    batch = [np.broadcast_to(a, (64, *a.shape)) for a in (target, source, inside)]
    corrupt = corrupt_as(task="fpi", num_patches=3, source_jitter=True)
    key = jax.random.key(3)
    made = corrupt(key, np.uint32(0), jax.random.split(key, 64), *batch)
    return target, jax.tree.map(np.asarray, made)


def test_unlabelled_pixels_inside_are_unchanged(corrupted):
    target, made = corrupted
    change = np.abs(made.image - target)[:, 4:28, 4:28]
    quiet = made.label[:, 4:28, 4:28] == 0
    # FPI leaves changes below its tolerance of 1e-3 unlabelled, in each of three patches.
    assert change[quiet].max() < 3.1e-3
    assert change[~quiet].mean() > 0.05


def test_one_to_three_patches_are_drawn(corrupted):
    _, made = corrupted
    levels = np.array([len(np.unique(label)) - 1 for label in made.label])
    assert set(levels) >= {1, 2, 3}
    assert levels.max() <= 3


def test_a_mixture_makes_each_batch_by_one_of_its_tasks():
    text = "cutpaste,3@fpi+cutpaste"
    target, source = RNG.random((2, 3, SIZE, SIZE, 1), np.float32)
    batch = jax.random.split(jax.random.key(1), 3), target, source, np.ones_like(target, bool)
    alone = {name: corrupt_as(task=name) for name in ("cutpaste", "fpi")}
    mixed, mixture = corrupt_as(task=text), read_mixture(text, TASKS)
    seen = set()
    for number in range(6):
        key = jax.random.key(number)
        for step in (2, 3):
            name = "cutpaste" if step < 3 else mixture.names[int(pick_task(key, mixture, step))]
            seen.add((step, name))
            found = mixed(key, np.uint32(step), *batch)
            expected = alone[name](key, np.uint32(step), *batch)
            jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), found, expected)
    assert seen == {(2, "cutpaste"), (3, "cutpaste"), (3, "fpi")}


def brightness():
    """The smallest localiser: one weight on the image; its losses tell what it was shown."""

    def loss(variables, key, batch):
        error = jnp.mean((variables["weight"] * batch.image - batch.label) ** 2)
        shown = {name: jnp.mean(value) for name, value in batch._asdict().items()}
        return error, {**shown, "spread": jnp.std(batch.image)}

    return Localiser(init=None, loss=loss, sample=None)


def state_of(config):
    """A new member of one weight."""
    params = {"weight": np.float32(1.0)}
    return {
        "key": jax.random.key_data(jax.random.key(2)),
        "params": params,
        "opt_state": build_optimizer(config).init(params),
        "bad": {"count": np.int32(0), "first": np.uint32(99)},
    }


def one_step(monkeypatch, **changes):
    """The first step with a rate above zero: (change of the weight, losses)."""
    monkeypatch.setattr(train, "build_localiser", lambda config: brightness())
    config = config_of(warmup_steps=0, **changes)
    layout = parallel.plan(1, 8, devices=jax.local_devices()[:1])
    ends = np.zeros(8, np.float32), np.ones(8, np.float32)
    batch = Batch(*PAIR, *ends, *ends, np.arange(8))
    state, batch = jax.tree.map(lambda a: np.asarray(a)[None], (state_of(config), batch))
    step = parallel.lift(build_step(config, layout), layout)
    new, losses = step(state, np.zeros(1, np.uint32), np.zeros(1, np.int32), batch)
    assert new["bad"]["count"][0] == 0
    return float(new["params"]["weight"][0]) - 1.0, {k: float(v[0]) for k, v in losses.items()}


@pytest.mark.parametrize("task", [*TASKS, "cutpaste*2,100@cutpaste+fpi"])
def test_every_task_trains(monkeypatch, task):
    change, losses = one_step(monkeypatch, task=task)
    assert np.isfinite(list(losses.values())).all()
    assert change != 0
    assert losses["label"] > 0
    assert (losses["label_std"] > 0) == (task == "probabilistic_pii")


def test_every_way_of_equalising_trains_in_its_own_way(monkeypatch):
    ways = {way: one_step(monkeypatch, task="fpi", equalise=way) for way in WAYS}
    for change, losses in ways.values():
        assert np.isfinite(list(losses.values())).all()
        assert change != 0
        assert losses["label"] > 0
    shown = np.array([[losses["spread"], losses["label"]] for _, losses in ways.values()])
    for one in range(len(WAYS)):
        for other in range(one):
            assert np.abs(shown[one] - shown[other]).max() > 1e-5, (WAYS[one], WAYS[other])


def test_clean_examples_are_the_prepared_images(monkeypatch):
    _, losses = one_step(monkeypatch, task="fpi", clean_fraction=1.0)
    assert losses["image"] == pytest.approx(PAIR[0].mean(), rel=1e-6)
    assert losses["spread"] == pytest.approx(PAIR[0].std(), rel=1e-6)
    assert losses["label"] == losses["label_std"] == 0


def test_healthy_is_an_empty_anomaly_and_choose_picks():
    image = np.ones((2, 4, 4, 3), np.float32)
    nothing = healthy(image)
    assert nothing.label.shape == (2, 4, 4, 1)
    assert not nothing.label.any()
    other = jax.tree.map(lambda a: a + 1, nothing)
    which = np.array([True, False]).reshape(2, 1, 1, 1)
    found = choose(which, nothing, other)
    assert_array_equal(found.label[:, 0, 0, 0], [0, 1])


def newton_schulz(s):
    """What four quintic steps make of singular values; (c0, c1, c2) are those of Jordan et al."""
    s = s / np.linalg.norm(s)
    for _ in range(4):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def test_kernels_step_along_the_orthogonal_factor_and_the_rest_by_adam():
    config = config_of(num_steps=10, warmup_steps=1, learning_rate=2e-3, weight_decay=0.1)
    shapes = {
        "kernel": (3, 3, 4, 6),
        "wide": (1, 1, 4, 16),
        "volume": (3, 3, 3, 2, 6),
        "head": (1, 1, 8, 2),
        "volume_head": (1, 1, 1, 8, 2),
        "bias": (6,),
        "scale": (6,),
    }
    params = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    optimizer, rate = build_optimizer(config), learning_rate(config)
    adam = optax.adam(rate, nesterov=True)
    rest = {name: params[name] for name in ("head", "volume_head", "bias", "scale")}
    state, adam_state = optimizer.init(params), adam.init(rest)
    momentum = dict.fromkeys(("kernel", "wide", "volume"), 0.0)
    update = jax.jit(optimizer.update, compiler_options=QUICK)
    for step in range(4):
        gradient = {k: RNG.normal(size=s).astype(np.float32) for k, s in shapes.items()}
        found, state = update(gradient, state, params)
        expected, adam_state = adam.update({k: gradient[k] for k in rest}, adam_state, rest)
        for name in rest:
            assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-9)
        for name in momentum:
            g = np.float64(gradient[name])
            momentum[name] = 0.95 * momentum[name] + 0.05 * g
            ahead = 0.95 * momentum[name] / (1 - 0.95 ** (step + 2))
            ahead = ahead + 0.05 * g / (1 - 0.95 ** (step + 1))
            # All inputs of an output channel are one column, in whatever order.
            matrix = ahead.reshape(-1, shapes[name][-1])
            u, s, vt = np.linalg.svd(matrix, full_matrices=False)
            s = newton_schulz(s)
            assert 0.3 < s.min() < s.max() < 1.3  # nearly orthogonal
            factor = (u * s) @ vt * np.sqrt(max(1, matrix.shape[1] / matrix.shape[0]))
            decayed = factor.reshape(shapes[name]) + 0.1 * params[name]
            wanted = -MUON_SCALE * float(rate(step)) * decayed
            assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-6)
        params = jax.tree.map(np.asarray, optax.apply_updates(params, found))
        rest = {name: params[name] for name in rest}


def test_the_learning_rate_warms_up_and_decays():
    config = training_config()
    config.num_steps, config.warmup_steps, config.learning_rate = 100, 10, 1.0
    rate = learning_rate(config)
    assert rate(0) == 0
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(55)) == pytest.approx(0.5, abs=1e-3)
    assert float(rate(100)) == pytest.approx(0.0, abs=1e-6)


def easy_steps(monkeypatch, target, *, parts=1, **changes):
    """One whole step of the smallest localiser, in `parts`: the new state, as NumPy."""
    monkeypatch.setattr(train, "build_localiser", lambda config: brightness())
    config = config_of(warmup_steps=0, accumulation=parts, task="cutpaste", **changes)
    layout = parallel.plan(1, 8 // parts, devices=jax.local_devices()[:2])
    ends = np.zeros(8, np.float32), np.ones(8, np.float32)
    batch = Batch(target, PAIR[1], *ends, *ends, np.arange(8))
    state = state_of(config)
    if parts > 1:
        state["sum"] = {"weight": np.zeros((), np.float32)}
    (state,) = parallel.spread(jax.tree.map(lambda a: np.asarray(a)[None], state), layout)
    step = parallel.lift(build_step(config, layout), layout)
    size = 8 // parts
    for part in range(parts):
        share = jax.tree.map(lambda a, p=part: a[p * size : (p + 1) * size], batch)
        number, which = np.full(2, 7, np.uint32), np.full(2, part, np.int32)
        state, _ = step(state, number, which, parallel.stack_batches([share], layout))
    return jax.tree.map(lambda a: np.asarray(a)[0], state)


def test_a_batch_in_parts_is_the_same_step(monkeypatch):
    whole = easy_steps(monkeypatch, PAIR[0])
    assert whole["params"]["weight"] != 1
    parts = easy_steps(monkeypatch, PAIR[0], parts=4)
    assert_allclose(parts["params"]["weight"], whole["params"]["weight"], atol=1e-7)
    moments = [jax.tree.leaves(state["opt_state"]) for state in (parts, whole)]
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-9), *moments)


def test_a_nan_is_counted_and_leaves_no_trace_if_so_wished(monkeypatch):
    target = PAIR[0].copy()
    target[3] = np.nan
    state = easy_steps(monkeypatch, target, clean_fraction=1.0)
    assert (state["bad"]["count"], state["bad"]["first"]) == (1, 7)
    assert np.isnan(state["params"]["weight"])
    options = {"clean_fraction": 1.0, "skip_nonfinite": True}
    state = easy_steps(monkeypatch, target, parts=2, **options)
    assert (state["bad"]["count"], state["bad"]["first"]) == (1, 7)
    assert state["params"]["weight"] == 1
    untouched = build_optimizer(config_of()).init(state["params"])
    jax.tree.map(assert_array_equal, state["opt_state"], untouched)


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.accumulation: found 3"):
        train.train(config_of(accumulation=3), tmp_path, None)
