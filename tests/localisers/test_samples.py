"""What samples of a head with a std add up to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from caal_jax.confidence.belief import accumulate, belief
from caal_jax.localisers.deterministic import spread_samples
from caal_jax.localisers.heads import mean_and_std

HEAD = mean_and_std()
draw = jax.jit(
    lambda outputs, num_samples: spread_samples(HEAD, outputs, num_samples), static_argnums=1
)
believe = jax.jit(lambda samples: belief(accumulate(samples)))
RNG = np.random.default_rng(0)


def outputs_of(mean, std):
    """Outputs (1, ..., 2) that the std head takes for this mean and std."""
    mean, std = np.float64(mean), np.float64(std)
    return jnp.asarray(np.stack([np.log(mean / (1 - mean)), np.log(np.expm1(std))], -1)[None])


@pytest.mark.parametrize("num_samples", [2, 5, 20])
def test_the_variance_over_members_and_samples_is_the_total_one(num_samples):
    # Three members: V = mean(std_m^2) + var(mean_m).
    mean, std = RNG.uniform(0.3, 0.7, (3, 40)), RNG.uniform(0.01, 0.14, (3, 40))
    samples = [draw(outputs_of(m, s), num_samples) for m, s in zip(mean, std, strict=True)]
    found = believe(jnp.concatenate(samples)[..., 0])
    assert_allclose(found.mean, mean.mean(0), atol=1e-6)
    assert_allclose(found.variance, (std**2).mean(0) + mean.var(0), atol=1e-6)


@pytest.mark.parametrize("num_samples", [2, 5, 20])
def test_a_std_beyond_the_ends_leaves_the_mean_in_place(num_samples):
    mean = np.array([1e-6, 0.02, 0.3, 0.5, 0.9, 0.999])
    samples = np.float64(draw(outputs_of(mean, 0.4 + 0 * mean), num_samples))
    assert samples.min() >= 0
    assert samples.max() <= 1
    assert_allclose(samples.mean(0)[:, 0], mean, rtol=1e-5)
    assert (samples.std(0)[:, 0] <= np.minimum(mean, 1 - mean) + 1e-6).all()


def test_one_sample_is_the_mean():
    mean = np.array([0.1, 0.6])
    assert_allclose(draw(outputs_of(mean, [0.3, 0.3]), 1)[0, :, 0], mean, rtol=1e-6)
