"""From samples of members to what is believed at each pixel, and how firmly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlog1py, xlogy


class BeliefSums(NamedTuple):
    """Running sums over samples, all that is kept of them.

    count is a scalar, the others have the shape of one sample. Two of these merge with
    `jax.tree.map(jnp.add, a, b)`, and devices with `jax.lax.psum`.
    """

    count: jax.Array
    probability: jax.Array
    probability_squared: jax.Array
    entropy: jax.Array


class Belief(NamedTuple):
    """Summary of samples p_1 .. p_S of the probability of an anomaly; entropies in nats.

    mean: m = sum_s p_s / S.
    variance: sum_s (p_s - m)^2 / S, in [0, 1/4]; m (1 - m) = variance + sum_s p_s (1 - p_s) / S.
    predictive_entropy: H(m), in [0, ln 2]; the sum of the two below.
    expected_entropy: sum_s H(p_s) / S, aleatoric: what each sample finds ambiguous.
    mutual_information: H(m) - expected_entropy >= 0, epistemic: where samples disagree.
        So does the ambiguity of the label, where samples were spread by a head's std of it.
    """

    mean: jax.Array
    variance: jax.Array
    predictive_entropy: jax.Array
    expected_entropy: jax.Array
    mutual_information: jax.Array


def binary_entropy(probability):
    """-p ln p - (1 - p) ln(1 - p) in nats, 0 at 0 and 1; any shape."""
    return -(xlogy(probability, probability) + xlog1py(1 - probability, -probability))


def accumulate(samples):
    """Sums samples (S, ...) of probabilities in [0, 1] over their first axis: BeliefSums of (...).

    float32 whatever comes in, as half precision would lose the variance.
    """
    samples = samples.astype(jnp.float32)
    return BeliefSums(
        count=jnp.float32(samples.shape[0]),
        probability=jnp.sum(samples, axis=0),
        probability_squared=jnp.sum(samples**2, axis=0),
        entropy=jnp.sum(binary_entropy(samples), axis=0),
    )


def belief(sums):
    """Belief, with arrays of the shape of one sample, from BeliefSums of count >= 1.

    The variance is a difference of float32 sums: its absolute error stays below 1e-6 for up to
    100 samples (so standard deviations below 1e-3 are noise where m is near 1). The mutual
    information likewise. Tiny negatives of both become 0; the decomposition of the entropy
    holds up to that clipping.
    Papers: Depeweg et al. 2018 (doi:10.48550/arXiv.1710.07283) for the entropies, Lakshminarayanan
    et al. 2017 for ensembles. Test reference: NumPy in float64.
    """
    mean = sums.probability / sums.count
    expected_entropy = sums.entropy / sums.count
    predictive_entropy = binary_entropy(mean)
    return Belief(
        mean=mean,
        variance=jnp.maximum(sums.probability_squared / sums.count - mean**2, 0.0),
        predictive_entropy=predictive_entropy,
        expected_entropy=expected_entropy,
        mutual_information=jnp.maximum(predictive_entropy - expected_entropy, 0.0),
    )
