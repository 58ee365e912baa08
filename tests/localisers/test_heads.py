import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit, log_softmax, softmax

from caal_jax.errors import InputError
from caal_jax.localisers import HEADS
from caal_jax.localisers.heads import classes, gaussian, intensity, mean_and_std, soft_binary
from caal_jax.synthesis import Anomaly

RNG = np.random.default_rng(0)
LABEL, STD = RNG.random((2, 3, 4, 5, 1), np.float32)
BATCH = Anomaly(None, LABEL, STD)


def outputs(channels):
    return RNG.normal(0, 2, (3, 4, 5, channels)).astype(np.float32)


def cross_entropy(logit):
    p = expit(np.float64(logit))
    return -LABEL * np.log(p) - (1 - LABEL) * np.log1p(-p)


@pytest.mark.parametrize("name", HEADS)
def test_an_untrained_network_says_that_anomalies_are_rare(name):
    head = HEADS[name]()
    mean, std = head.predict(jnp.asarray([head.initial]))
    assert mean.shape == std.shape == (1, 1)
    assert 0.01 < float(mean[0, 0]) < 0.04
    assert 0 <= float(std[0, 0]) < 0.2
    assert head.losses(outputs(len(head.initial)), BATCH).keys() == head.weights.keys()


@pytest.mark.parametrize("name", HEADS)
def test_predictions_are_probabilities_and_losses_are_per_pixel(name):
    head = HEADS[name]()
    x = 5 * outputs(len(head.initial))
    mean, std = head.predict(x)
    assert mean.shape == std.shape == LABEL.shape
    assert float(mean.min()) >= 0
    assert float(mean.max()) <= 1
    assert float(std.min()) >= 0
    for loss in head.losses(x, BATCH).values():
        assert loss.shape == LABEL.shape


def test_soft_binary():
    x = outputs(1)
    head = soft_binary()
    assert_allclose(head.losses(x, BATCH)["bce"], cross_entropy(x), rtol=1e-5)
    mean, std = head.predict(x)
    assert_allclose(mean, expit(x), rtol=1e-5)
    assert not std.any()


def test_mean_and_std():
    x = outputs(2)
    softplus = np.log1p(np.exp(np.float64(x[..., 1:])))
    head = mean_and_std(std_weight=3.0)
    parts = head.losses(x, BATCH)
    assert_allclose(parts["bce"], cross_entropy(x[..., :1]), rtol=1e-5)
    assert_allclose(parts["std"], (softplus - STD) ** 2, rtol=1e-4, atol=1e-7)
    assert_allclose(head.total(parts), parts["bce"] + 3 * parts["std"], rtol=1e-6)
    mean, std = head.predict(x)
    assert_allclose(mean, expit(x[..., :1]), rtol=1e-5)
    assert_allclose(std, softplus, rtol=1e-5)


def test_gaussian_is_a_likelihood_weighted_by_the_std():
    head, x = gaussian(), outputs(2)
    x[0, 0, 0, 1], x[0, 0, 1, 1] = -20, 20
    mean, log_variance = expit(np.float64(x[..., :1])), np.clip(np.float64(x[..., 1:]), -10, 4)
    found_mean, std = head.predict(x)
    assert_allclose(found_mean, mean, rtol=1e-5)
    assert_allclose(std**2, np.exp(log_variance), rtol=1e-4)
    error = (LABEL - mean) ** 2
    likelihood = (error / np.exp(log_variance) + log_variance) / 2
    weight = np.sqrt(np.exp(log_variance))
    assert_allclose(head.losses(x, BATCH)["beta_nll"], weight * likelihood, rtol=1e-4, atol=1e-6)
    gradient = jax.grad(lambda x: head.losses(x, BATCH)["beta_nll"].sum())(jnp.asarray(x))
    # The weight is held constant, and nothing pulls where the log-variance is clipped.
    by_logit = weight * (mean - LABEL) * mean * (1 - mean) / np.exp(log_variance)
    assert_allclose(gradient[..., :1], by_logit, rtol=1e-3, atol=1e-6)
    by_spread = weight * (1 - error / np.exp(log_variance)) / 2 * (np.abs(x[..., 1:] + 3) < 7)
    assert_allclose(gradient[..., 1:], by_spread, rtol=1e-3, atol=1e-5)


def test_intensity_is_a_regression():
    head, x = intensity(), outputs(1)
    assert_allclose(head.losses(x, BATCH)["mse"], (x - LABEL) ** 2, rtol=1e-5)
    assert_allclose(head.predict(x)[0], np.clip(x, 0, 1))


@pytest.mark.parametrize("num_classes", [2, 5])
def test_classes_of_labels_on_the_levels(num_classes):
    head, x = classes(num_classes=num_classes), outputs(num_classes)
    level = RNG.integers(num_classes, size=LABEL.shape)
    batch = Anomaly(None, np.float32(level / (num_classes - 1)), STD)
    expected = -np.take_along_axis(log_softmax(np.float64(x), -1), level, -1)
    assert_allclose(head.losses(x, batch)["cross_entropy"], expected, rtol=1e-4, atol=1e-5)
    score = softmax(np.float64(x), -1) @ np.linspace(0, 1, num_classes)
    assert_allclose(head.predict(x)[0][..., 0], score, rtol=1e-5)


def test_classes_share_a_label_between_two_levels():
    head = classes(num_classes=3)
    x = jnp.zeros((1, 3))
    one = Anomaly(None, np.full((1, 1), 0.6, np.float32), None)  # 0.8 of level 1/2, 0.2 of level 1
    gradient = jax.grad(lambda x: head.losses(x, one)["cross_entropy"].sum())(x)
    assert_allclose(gradient, [[1 / 3, 1 / 3 - 0.8, 1 / 3 - 0.2]], atol=1e-6)


def test_one_class_is_refused():
    with pytest.raises(InputError, match="num_classes"):
        classes(num_classes=1)
