"""The latent variables of PHiSeg and of the probabilistic U-Net."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit

from caal_jax.localisers import phiseg, probabilistic_unet
from caal_jax.localisers.heads import soft_binary
from caal_jax.localisers.phiseg import Normal, PHiSeg, divergence
from caal_jax.synthesis import Anomaly

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
QUICK = {"xla_backend_optimization_level": 0}
SIZES = {"width": 2, "depth": 2}
NETS = {
    "phiseg": phiseg(**SIZES, latent_levels=2, head=soft_binary()),
    "probabilistic_unet": probabilistic_unet(**SIZES, head=soft_binary()),
}
IMAGE = RNG.random((2, 16, 8, 1), np.float32)
LABEL = np.float32(RNG.random((2, 16, 8, 1)) > 0.7) * IMAGE
BATCH = Anomaly(IMAGE, LABEL, np.zeros_like(LABEL))


def jitted(function, **options):
    return jax.jit(function, compiler_options=QUICK, **options)


DRAW = {name: jitted(net.sample, static_argnums=3) for name, net in NETS.items()}
LOSS = {name: jitted(net.loss) for name, net in NETS.items()}


@pytest.fixture(scope="module", params=NETS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def variables(name):
    shapes = jax.eval_shape(NETS[name].init, KEY, IMAGE[0])
    return parity.fill(shapes, np.random.default_rng(2))


def changed(variables, part, change):
    """The variables with `change(path, leaf)` made to all under names that contain `part`."""

    def one(path, leaf):
        names = [key.key for key in path]
        return change(names, leaf) if any(part in each for each in names) else leaf

    return jax.tree_util.tree_map_with_path(one, variables)


def without_spread(variables, part, raw=-30):
    """All latents of `part` with one std, softplus(raw), nearly 0: their second convolution's."""

    def quiet(names, leaf):
        if "Conv_1" not in names or not any("Gaussian" in each for each in names):
            return leaf
        return np.zeros_like(leaf) if names[-1] == "kernel" else np.full_like(leaf, raw)

    return changed(variables, part, quiet)


def test_divergence_against_random_draws():
    q, p = (
        Normal(*RNG.normal(size=(2, 3, 2, 2)).astype(np.float32) * [[[[1]]], [[[0.3]]]])
        for _ in range(2)
    )
    q, p = (Normal(each.mean, np.exp(each.std)) for each in (q, p))
    x = q.mean + q.std * RNG.normal(size=(200_000, 3, 2, 2))

    def log_density(normal):
        return -np.log(normal.std) - 0.5 * ((x - normal.mean) / normal.std) ** 2

    estimate = (log_density(q) - log_density(p)).sum((2, 3)).mean(0)
    found = divergence(q, p)
    assert_allclose(found, estimate, rtol=1e-2, atol=1e-2)
    assert (found > 0.1).all()
    assert_allclose(divergence(q, q), 0, atol=1e-6)


def test_shapes_of_the_published_sizes():
    net = PHiSeg()
    shapes = net.latent_shapes((128, 128))
    assert shapes == [(n, n, 2) for n in (32, 16, 8, 4, 2)]
    image = jnp.zeros((1, 128, 128, 1))
    noise = [jnp.zeros((1, *shape)) for shape in shapes]
    (outputs, q, p), _ = jax.eval_shape(net.init_with_output, KEY, image, image, noise)
    assert [output.shape for output in outputs] == [(1, 128, 128, 2)] * 5
    for normals in (q, p):
        assert [normal.mean.shape for normal in normals] == [(1, *shape) for shape in shapes]
        assert [normal.std.shape for normal in normals] == [(1, *shape) for shape in shapes]


def test_one_sample_is_that_of_the_prior_means(name, variables):
    found = DRAW[name](variables, KEY, IMAGE, 1)
    assert found.shape == (1, *IMAGE.shape)
    assert_array_equal(found, DRAW[name](variables, jax.random.key(9), IMAGE, 1))
    draws = DRAW[name](without_spread(variables, "prior"), KEY, IMAGE, 2)
    assert_allclose(draws, np.broadcast_to(draws[:1], draws.shape), atol=1e-4)
    assert_allclose(draws[:1], found, atol=1e-4)
    assert found.std() > 0.01


def test_draws_depend_on_key_and_number_and_not_on_batch_mates(name, variables):
    draws = np.asarray(DRAW[name](variables, KEY, IMAGE, 2))
    assert (np.abs(draws[0] - draws[1]).max((1, 2, 3)) > 0.01).all()
    again = DRAW[name](variables, jax.random.key(4), IMAGE, 2)
    assert (np.abs(draws - again).max((2, 3, 4)) > 0.01).all()
    reverse = DRAW[name](variables, KEY, IMAGE[::-1], 2)
    assert_allclose(reverse, draws[:, ::-1], atol=1e-5)


def test_draws_know_the_prior_and_not_the_posterior(name, variables):
    draws = DRAW[name](variables, KEY, IMAGE, 2)
    other = changed(variables, "posterior", lambda names, leaf: leaf + 1)
    assert_array_equal(DRAW[name](other, KEY, IMAGE, 2), draws)
    other = changed(variables, "prior", lambda names, leaf: leaf * 1.5)
    assert np.abs(DRAW[name](other, KEY, IMAGE, 2) - draws).max() > 0.01


def test_a_loss_with_a_key_per_example_can_be_split_over_devices(name, variables):
    keys = jax.random.split(KEY, 2)
    whole = LOSS[name](variables, keys, BATCH)
    # Each example twice has the loss of that example alone, and needs no other program.
    alone = [
        LOSS[name](variables, keys[twice], jax.tree.map(lambda a, t=twice: a[t], BATCH))
        for twice in (np.array([0, 0]), np.array([1, 1]))
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *alone)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=2e-5), whole, mean)
    other, _ = LOSS[name](variables, keys[::-1], BATCH)
    assert abs(other - whole[0]) > 1e-5


def test_a_sample_of_phiseg_is_the_sum_of_all_levels():
    net = PHiSeg(**SIZES, levels=2, initial=(0.0,))
    noise = [np.zeros((2, *shape), np.float32) for shape in net.latent_shapes((16, 8))]
    shapes = jax.eval_shape(net.init, KEY, IMAGE, LABEL, noise)
    variables = parity.fill(shapes, np.random.default_rng(2))

    @jitted
    def levels_of(variables, noise):
        maps = net.apply(variables, IMAGE, method="encode")
        return net.apply(variables, maps, noise, method="draw")

    fine, coarse = (np.float64(level) for level in levels_of(variables, noise))
    assert_allclose(DRAW["phiseg"](variables, KEY, IMAGE, 1)[0], expit(fine + coarse), atol=1e-5)
    for level in (fine, coarse):
        assert np.abs(expit(fine + coarse) - expit(level)).max() > 0.05
    # Draw s of all images: the s-th key's normal variables, level by level.
    for s, key in enumerate(jax.random.split(KEY, 2)):
        keys = jax.random.split(key, 2)
        each = [jax.random.normal(k, n.shape[1:]) for k, n in zip(keys, noise, strict=True)]
        fine, coarse = levels_of(variables, [jnp.stack([n, n]) for n in each])
        drawn = DRAW["phiseg"](variables, KEY, IMAGE, 2)[s]
        assert_allclose(drawn, expit(np.float64(fine + coarse)), atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "coarser"), [((16, 8), 4), ((4, 8, 4), 8)], ids=["images", "volumes"]
)
def test_the_loss_of_phiseg_literally(sizes, coarser):
    image, label = np.reshape((IMAGE, LABEL), (2, 2, *sizes, 1))

    def cross_entropy(logit):
        p = expit(np.float64(logit))
        return -np.mean(label * np.log(p) + (1 - label) * np.log1p(-p))

    # Without spread in the posterior the loss's own draws of noise do not matter.
    net = PHiSeg(**SIZES, levels=2, initial=(0.0,))
    noise = [np.zeros((2, *shape), np.float32) for shape in net.latent_shapes(sizes)]
    shapes = jax.eval_shape(net.init, KEY, image, label, noise)
    certain = without_spread(parity.fill(shapes, np.random.default_rng(2)), "posterior")
    # The divergence must not drown the cross-entropies.
    certain = without_spread(certain, "prior", raw=1)
    (fine, coarse), q, p = jitted(net.apply)(certain, image, label, noise)
    divergences = [divergence(a, b).mean() for a, b in zip(q, p, strict=True)]
    kl = (divergences[0] + coarser * divergences[1]) / (16 * 8)
    total, parts = LOSS["phiseg"](certain, KEY, Anomaly(image, label, np.zeros_like(label)))
    assert_allclose(parts["bce"], cross_entropy(fine + coarse), rtol=1e-4)
    assert_allclose(parts["kl"], kl, rtol=1e-4)
    # From coarse to fine: what is added last corrects what was there.
    assert abs(cross_entropy(fine) - cross_entropy(coarse)) > 0.01
    expected = cross_entropy(coarse) + cross_entropy(fine + coarse)
    assert_allclose(total - parts["kl"], expected, rtol=1e-3)


def generalised_energy_distance(drawn, labels):
    """Squared, of two sets of masks (N, ...), (M, ...) bool, pairs of a mask with itself included.

    The distance of two masks is 1 - intersection over union, 0 if both are empty.
    """

    def distance(one, other):
        union = np.count_nonzero(one | other)
        return 1 - np.count_nonzero(one & other) / union if union else 0.0

    def mean(some, others):
        return np.mean([[distance(one, other) for other in others] for one in some])

    return 2 * mean(drawn, labels) - mean(drawn, drawn) - mean(labels, labels)


def test_the_energy_distance_by_hand():
    left, right, all_of_it = np.array([[1, 0], [0, 1], [1, 1]], bool)
    assert generalised_energy_distance([left, right], [right, left]) == 0
    assert generalised_energy_distance([left], [right]) == 2
    # 2 * 1/2 - 0 - (0 + 1 + 1 + 0) / 4
    assert generalised_energy_distance([all_of_it], [left, right]) == 0.5
    assert generalised_energy_distance([left & right], [left & right]) == 0


def test_phiseg_learns_a_label_that_the_image_does_not_tell():
    net = NETS["phiseg"]
    # One image and two labels: only the posterior can know which one is asked for.
    image = IMAGE[[0, 0]]
    label = np.zeros_like(image)
    label[0, :8], label[1, 8:] = 1, 1
    batch = Anomaly(image, label, np.zeros_like(label))
    optimizer = optax.adam(3e-2)
    shapes = jax.eval_shape(net.init, KEY, image[0])
    variables = parity.fill(shapes, np.random.default_rng(2))

    @jitted
    def step(variables, state, key):
        (_, parts), gradient = jax.value_and_grad(net.loss, has_aux=True)(variables, key, batch)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, update), state, parts

    state = optimizer.init(variables)
    for number in range(120):
        variables, state, parts = step(variables, state, jax.random.key(number))
    # As a set, draws are nearer to the two labels than one answer, even the best, can be.
    many = np.asarray(DRAW["phiseg"](variables, KEY, image, 8))[:, 0] > 0.5
    assert generalised_energy_distance(many, label > 0.5) < 0.4
    assert generalised_energy_distance([np.ones_like(many[0])], label > 0.5) == 0.5
    drawn = np.asarray(DRAW["phiseg"](variables, KEY, image, 2))
    p = np.clip(np.float64(drawn), 1e-7, 1 - 1e-7)
    prior = -np.mean(label * np.log(p) + (1 - label) * np.log1p(-p))
    assert parts["bce"] < 0.5 * np.log(2)
    assert parts["bce"] < prior - 0.2
