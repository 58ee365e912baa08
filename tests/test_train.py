"""The corruption of a pair and the pieces around the training loop."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from caal_jax.defaults import training_config
from caal_jax.train import build_corrupt, check_finite, choose, healthy, learning_rate

SIZE = 32


@pytest.fixture(scope="module")
def corrupted():
    """64 corruptions of one pair by FPI, three patches at most: (target, Anomaly)."""
    config = training_config()
    config.task, config.num_patches = "fpi", 3
    rng = np.random.default_rng(0)
    target, source = rng.uniform(0.2, 0.8, (2, SIZE, SIZE, 1)).astype(np.float32)
    inside = np.zeros((SIZE, SIZE, 1), bool)
    inside[4:28, 4:28] = True
    keys = jax.random.split(jax.random.key(3), 64)
    corrupt = jax.jit(jax.vmap(build_corrupt(config), (0, None, None, None)))
    return target, jax.tree.map(np.asarray, corrupt(keys, target, source, inside))


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


def test_healthy_is_an_empty_anomaly_and_choose_picks():
    image = np.ones((2, 4, 4, 3), np.float32)
    nothing = healthy(image)
    assert nothing.label.shape == (2, 4, 4, 1)
    assert not nothing.label.any()
    other = jax.tree.map(lambda a: a + 1, nothing)
    which = np.array([True, False]).reshape(2, 1, 1, 1)
    found = choose(which, nothing, other)
    assert_array_equal(found.label[:, 0, 0, 0], [0, 1])


def test_the_learning_rate_warms_up_and_decays():
    config = training_config()
    config.num_steps, config.warmup_steps, config.learning_rate = 100, 10, 1.0
    rate = learning_rate(config)
    assert rate(0) == 0
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(55)) == pytest.approx(0.5, abs=1e-3)
    assert float(rate(100)) == pytest.approx(0.0, abs=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    check_finite(np.array([1.0, 2.0]), 5, tmp_path)
    with pytest.raises(FloatingPointError, match=r"\[1\].*step 5"):
        check_finite(np.array([1.0, np.nan]), 5, tmp_path)
