"""What the last channels of a network mean: the losses of raw outputs, and what they predict."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from caal_jax.errors import InputError

# Anomalies cover a few percent of the pixels: starting at that rate saves the first steps.
INITIAL_PROBABILITY = 0.02
# In float32, to the last bit what published runs started from.
INITIAL_LOGIT = float(np.log(np.float32(INITIAL_PROBABILITY / (1 - INITIAL_PROBABILITY))))
BETA = 0.5  # of the Gaussian head's loss; the value that Seitzer et al. recommend


class Head(NamedTuple):
    """The meaning of outputs (..., K), float32; labels and predictions are (..., 1).

    initial: the K outputs that an untrained network gives everywhere.
    losses(outputs, batch) -> {name: (..., 1)}, the losses of every pixel of an `Anomaly`.
    weights: {name: weight} of those losses in the sum.
    predict(outputs) -> (probability of an anomaly in [0, 1], its std >= 0).
    """

    initial: tuple[float, ...]
    losses: Callable
    weights: dict[str, float]
    predict: Callable

    def total(self, parts):
        """The weighted sum of the losses, whatever they were reduced to."""
        return sum(weight * parts[name] for name, weight in self.weights.items())


def soft_binary():
    """One logit, by binary cross-entropy with the soft label."""

    def losses(outputs, batch):
        return {"bce": optax.sigmoid_binary_cross_entropy(outputs, batch.label)}

    def predict(outputs):
        return nn.sigmoid(outputs), jnp.zeros_like(outputs)

    return Head((INITIAL_LOGIT,), losses, {"bce": 1.0}, predict)


def mean_and_std(*, std_weight=1.0):
    """A logit as in `soft_binary`, and a softplus std of the label by regression on `label_std`.

    std_weight: weight of the std's squared error.
    """

    def losses(outputs, batch):
        logit, spread = jnp.split(outputs, 2, axis=-1)
        return {
            "bce": optax.sigmoid_binary_cross_entropy(logit, batch.label),
            "std": jnp.square(nn.softplus(spread) - batch.label_std),
        }

    def predict(outputs):
        mean, spread = jnp.split(outputs, 2, axis=-1)
        return nn.sigmoid(mean), nn.softplus(spread)

    return Head((INITIAL_LOGIT, -3.0), losses, {"bce": 1.0, "std": std_weight}, predict)


def gaussian():
    """The sigmoid of a logit as mean and a log-variance in [-10, 4], by the label's likelihood.

    Each pixel's negative log-likelihood, without its constant, is weighted by its own std, held
    constant (beta-NLL with beta = 1/2): plain likelihood starves the mean where the variance is
    large. Paper: Seitzer et al. 2022, arXiv 2203.09168.
    """

    def log_variance(outputs):
        return jnp.clip(outputs[..., 1:], -10.0, 4.0)

    def losses(outputs, batch):
        spread = log_variance(outputs)
        error = jnp.square(batch.label - nn.sigmoid(outputs[..., :1]))
        likelihood = 0.5 * (jnp.exp(-spread) * error + spread)
        return {"beta_nll": jax.lax.stop_gradient(jnp.exp(BETA * spread)) * likelihood}

    def predict(outputs):
        return nn.sigmoid(outputs[..., :1]), jnp.exp(0.5 * log_variance(outputs))

    return Head((INITIAL_LOGIT, -4.0), losses, {"beta_nll": 1.0}, predict)


def intensity():
    """The label itself, by squared error; predictions are clipped to [0, 1]."""

    def losses(outputs, batch):
        return {"mse": jnp.square(outputs - batch.label)}

    def predict(outputs):
        return jnp.clip(outputs, 0.0, 1.0), jnp.zeros_like(outputs)

    return Head((INITIAL_PROBABILITY,), losses, {"mse": 1.0}, predict)


def classes(*, num_classes=5):
    """K label levels c / (K - 1), by categorical cross-entropy; predicts the expected level.

    A label between two levels is shared among both, in proportion, so that none is biased; FPI's
    K-class labels lie on the levels. What is believed later knows the expected level alone, as one
    probability per pixel is what a sample is: its entropies are those of a coin of that probability
    and not those of the K levels. Paper: FPI, arXiv 2011.04197.
    """
    if num_classes < 2:
        raise InputError(
            "config.num_classes",
            found=num_classes,
            expected="2 or more",
            remedy="FPI has 5 for abdominal CT.",
        )
    levels = np.arange(num_classes, dtype=np.float32)

    def losses(outputs, batch):
        levels_of_pixel = jnp.broadcast_to(levels, outputs.shape)
        distance = jnp.abs(batch.label * (num_classes - 1) - levels_of_pixel)
        target = jnp.maximum(0.0, 1.0 - distance)
        return {"cross_entropy": optax.softmax_cross_entropy(outputs, target)[..., None]}

    def predict(outputs):
        probability = nn.softmax(outputs) @ levels[:, None] / (num_classes - 1)
        return probability, jnp.zeros_like(probability)

    rare = math.log(INITIAL_PROBABILITY / (num_classes - 1))
    initial = (math.log1p(-INITIAL_PROBABILITY), *[rare] * (num_classes - 1))
    return Head(initial, losses, {"cross_entropy": 1.0}, predict)


HEADS = {
    "std": mean_and_std,
    "binary": soft_binary,
    "gaussian": gaussian,
    "intensity": intensity,
    "classes": classes,
}
