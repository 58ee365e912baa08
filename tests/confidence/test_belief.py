import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import xlog1py, xlogy

from caal_jax.confidence.belief import accumulate, belief, binary_entropy

RNG = np.random.default_rng(0)
SAMPLES = np.stack(
    [
        RNG.random((6, 8, 8, 1)),
        RNG.beta(0.1, 0.1, (6, 8, 8, 1)),  # certain and contradicting
        1 - 1e-3 * RNG.random((6, 8, 8, 1)),
        1e-4 * RNG.random((6, 8, 8, 1)),
        np.broadcast_to(RNG.random((8, 8, 1)), (6, 8, 8, 1)),  # all agree
        np.broadcast_to(RNG.integers(0, 2, (8, 8, 1)), (6, 8, 8, 1)),
    ],
    axis=1,
).astype(np.float32)  # (S, B, H, W, 1)


def entropy(p):
    return -xlogy(p, p) - xlog1py(1 - p, -p)


def reference(samples):
    samples = np.float64(samples)
    mean, expected = samples.mean(0), entropy(samples).mean(0)
    total = entropy(mean)
    return mean, samples.var(0), total, expected, total - expected


def summarise(samples):
    return belief(accumulate(samples))


def by_image(samples):
    return jax.vmap(summarise, in_axes=1)(samples)


jitted = jax.jit(summarise)


@pytest.fixture(
    scope="module",
    params=[summarise, jitted, jax.jit(by_image)],
    ids=["eager", "jit", "vmap"],
)
def found(request):
    return request.param(jnp.asarray(SAMPLES))


def test_matches_float64(found):
    for name, got, want in zip(found._fields, found, reference(SAMPLES), strict=True):
        assert got.shape == SAMPLES.shape[1:]
        assert_allclose(got, want, rtol=0, atol=1e-6, err_msg=name)


def test_decompositions(found):
    aleatoric = np.mean(np.float64(SAMPLES) * (1 - np.float64(SAMPLES)), axis=0)
    total = np.float64(found.mean) * (1 - np.float64(found.mean))
    assert_allclose(found.variance + aleatoric, total, rtol=0, atol=1e-6)
    parts = found.expected_entropy + found.mutual_information
    assert_allclose(parts, found.predictive_entropy, rtol=0, atol=1e-6)


def test_ranges_and_agreement(found):
    for low, high, field in [
        (0, 0.25, found.variance),
        (0, np.log(2), found.predictive_entropy),
        (0, np.log(2), found.mutual_information),
    ]:
        assert low <= field.min()
        assert field.max() <= high + 1e-6
    assert_allclose(found.mutual_information[4:], 0, atol=1e-6)
    assert_allclose(found.variance[4:], 0, atol=1e-6)
    assert found.mutual_information[1].max() > 0.3


def test_contradiction_by_hand():
    got = jitted(jnp.array([[0.0], [1.0]]))
    assert_allclose(np.ravel(got), [0.5, 0.25, np.log(2), 0, np.log(2)], rtol=1e-6)


def test_sums_merge_in_any_order():
    add_up = jax.jit(accumulate)
    whole, one, two = (add_up(part) for part in (SAMPLES, SAMPLES[:3], SAMPLES[3:]))
    for first, second in [(one, two), (two, one)]:
        merged = jax.tree.map(jnp.add, first, second)
        for got, want in zip(merged, whole, strict=True):
            assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_count_is_an_array_for_collectives():
    count = accumulate(jnp.zeros((3, 2))).count
    assert isinstance(count, jax.Array)
    assert count.shape == ()
    assert count == 3


def test_sums_over_devices():
    summed = jax.pmap(
        lambda s: belief(jax.lax.psum(accumulate(s), "members")),
        axis_name="members",
        devices=jax.devices()[:2],
    )(jnp.asarray(SAMPLES).reshape(2, 3, *SAMPLES.shape[1:]))
    for got, want in zip(summed, reference(SAMPLES), strict=True):
        assert_allclose(got[1], want, rtol=0, atol=1e-6)


def test_half_precision_samples_are_summed_in_float32():
    half = jnp.asarray(SAMPLES, jnp.bfloat16)
    assert_allclose(jitted(half).variance, reference(half)[1], rtol=0, atol=1e-6)


def test_variance_error_of_a_hundred_samples():
    many = (1 - 1e-2 * RNG.random((100, 1000))).astype(np.float32)
    assert_allclose(jitted(many).variance, reference(many)[1], rtol=0, atol=1e-6)


def test_entropy_of_certainty_is_zero():
    assert (binary_entropy(jnp.array([0.0, 1.0])) == 0).all()
