"""Members, dropout, the std head and views, reduced on the devices, against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax import localise
from caal_jax.confidence.views import read_views
from caal_jax.defaults import training_config
from caal_jax.localise import PREDICT_DRAW, Predictor, build_localiser, new_models

RNG = np.random.default_rng(0)
IMAGES = RNG.random((5, 16, 16, 1)).astype(np.float32)
TINY_LATENT = {"width": 2, "depth": 1, "num_members": 2, "augment": "mirror"}
FOREGROUND = RNG.random((5, 16, 16, 1)) < 0.7


@pytest.fixture(scope="module", autouse=True)
def _quick():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def tiny_config(**changes):
    config = training_config()
    config.image_size, config.width, config.depth = 16, 4, 1
    config.num_members, config.num_samples = 3, 2
    config.update(changes)
    return config


def members_of(config):
    """Members as training would leave them: new ones answer the same everywhere."""
    models = jax.jit(lambda: new_models(config, 1))()
    rng = np.random.default_rng(1)
    noise = lambda a: np.asarray(a) + rng.normal(0, 0.5, a.shape).astype(np.float32)  # noqa: E731
    return {"key": np.asarray(models["key"]), "params": jax.tree.map(noise, models["params"])}


def seen_through(view, images):
    images = images[:, ::-1] if view[0] else images
    images = images[:, :, ::-1] if view[1] else images
    return np.roll(images, view[2:], (1, 2))


def seen_back(view, maps):
    maps = np.roll(maps, -view[2:], (2, 3))
    maps = maps[:, :, :, ::-1] if view[1] else maps
    return maps[:, :, ::-1] if view[0] else maps


def loop(config, members):
    """All samples (members * views * S, N, 16, 16), one network call after the other."""
    sample = jax.jit(build_localiser(config).sample, static_argnums=3)
    found = []
    for m in range(config.num_members):
        params = jax.tree.map(lambda a, i=m: a[i], members["params"])
        key = jax.random.fold_in(jax.random.wrap_key_data(members["key"][m]), PREDICT_DRAW)
        for view in read_views(config.augment):
            seen = jnp.asarray(seen_through(view, IMAGES))
            found.append(seen_back(view, np.asarray(sample(params, key, seen, config.num_samples))))
    return np.concatenate(found)[..., 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.3, "augment": "mirror+shifts"},
        {"num_members": 1, "dropout": 0.3, "num_samples": 20},  # in calls of two slices
        # Heads without a std: only members and latents differ.
        {"localiser": "phiseg", "latent_levels": 1, "head": "intensity", **TINY_LATENT},
        {"localiser": "probabilistic_unet", "head": "intensity", **TINY_LATENT},
    ],
    ids=["ensemble, dropout and views", "many samples", "phiseg", "probabilistic_unet"],
)
def test_all_samples_enter_the_belief(changes):
    config = tiny_config(**changes)
    members = members_of(config)
    found = Predictor(config, members)(IMAGES, FOREGROUND)
    samples = np.float64(loop(config, members))
    views = len(read_views(config.augment))
    assert len(samples) == config.num_members * views * config.num_samples
    assert_allclose(found.belief.mean, samples.mean(0), atol=1e-6)
    assert_allclose(found.belief.variance, samples.var(0), atol=1e-6)
    assert found.belief.variance.max() > 1e-3
    assert_array_equal(found.foreground, FOREGROUND[..., 0])
    # Every sample has its own sketch, of exactly the foreground of the five slices.
    totals = found.sketches.total.sum((1, 2))
    wanted = (samples * FOREGROUND[..., 0]).sum((1, 2, 3))
    assert_allclose(np.sort(totals), np.sort(wanted), rtol=1e-4)
    assert_array_equal(found.sketches.count.sum((1, 2)), np.full(len(samples), FOREGROUND.sum()))


def test_dropout_is_off_in_plain_evaluation():
    with_dropout, without = tiny_config(dropout=0.5, num_samples=1), tiny_config(num_samples=1)
    members = members_of(with_dropout)
    plain = Predictor(without, members)(IMAGES, FOREGROUND)
    off = Predictor(with_dropout, members)(IMAGES, FOREGROUND)
    assert_array_equal(off.belief.mean, plain.belief.mean)
    on = Predictor(tiny_config(dropout=0.5), members)(IMAGES, FOREGROUND)
    assert np.abs(on.belief.mean - plain.belief.mean).max() > 1e-3


def test_a_batch_holds_a_bounded_number_of_samples():
    for num_samples, batch in ((2, 32), (20, 2), (500, 1)):
        config = tiny_config(num_members=1, num_samples=num_samples)
        assert Predictor(config, members_of(config))._batch == batch
        assert batch == 1 or batch * num_samples <= localise.SAMPLES_PER_CALL


def test_a_single_answer_does_not_vary():
    jax.config.update("jax_disable_most_optimizations", False)  # with fused sums, which round
    config = tiny_config(num_members=1, num_samples=1)
    found = Predictor(config, members_of(config))(IMAGES, FOREGROUND).belief
    jax.config.update("jax_disable_most_optimizations", True)
    assert found.mean.std() > 0.01
    assert not found.variance.any()
    assert not found.mutual_information.any()
