import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from scipy.special import expit, ndtri, xlogy

from caal_jax.localisers import unet
from caal_jax.localisers.heads import mean_and_std
from caal_jax.localisers.unet import UNet, local_contrast, strides_of
from caal_jax.synthesis import Anomaly

RNG = np.random.default_rng(0)
SIZE = {"width": 4, "depth": 2}
PLAIN, DROPPING = unet(**SIZE), unet(**SIZE, dropout=0.5)
KEY = jax.random.key(1)
# Compiling takes longer than running here: the normal draws of `init` alone ten seconds.
QUICK = {"xla_backend_optimization_level": 0}

forward = jax.jit(UNet(**SIZE).apply, compiler_options=QUICK)
draw_plain = jax.jit(PLAIN.sample, static_argnums=3, compiler_options=QUICK)
draw_dropping = jax.jit(DROPPING.sample, static_argnums=3, compiler_options=QUICK)
plain_gradient = jax.jit(jax.value_and_grad(PLAIN.loss, has_aux=True), compiler_options=QUICK)
dropping_loss = jax.jit(DROPPING.loss, compiler_options=QUICK)


def make_batch():
    image = RNG.random((4, 16, 16, 1), np.float32)
    label = np.zeros_like(image)
    label[:3, 4:10, 5:12] = np.float32([0.3, 0.7, 1.0])[:, None, None, None]
    return Anomaly(image + label * (1 - image), label, 0.2 * label)


BATCH = make_batch()


@pytest.fixture(scope="module")
def fresh():
    """As a training starts: the last kernel is zero, so the answer is the same everywhere."""
    return jax.jit(PLAIN.init, compiler_options=QUICK)(jax.random.key(0), BATCH.image[0])


@pytest.fixture(scope="module")
def variables(fresh):
    """A network whose answer depends on the image."""
    name = head(fresh)
    shape = fresh["params"][name]["kernel"].shape
    kernel = np.random.default_rng(5).normal(0, 0.5, shape).astype(np.float32)
    last = {**fresh["params"][name], "kernel": jnp.asarray(kernel)}
    return {"params": {**fresh["params"], name: last}}


def head(variables):
    """The last layer's name: the one with a kernel onto two channels."""
    params = variables["params"]
    (name,) = [n for n in params if n.startswith("Conv_") and params[n]["kernel"].shape[-1] == 2]
    return name


def with_head(variables, *, bias, kernel=0.0):
    """The network with its last kernel scaled, per output channel, and its last bias replaced."""
    name = head(variables)
    kernel = variables["params"][name]["kernel"] * jnp.broadcast_to(
        jnp.float32(kernel), variables["params"][name]["kernel"].shape
    )
    new = {"kernel": kernel, "bias": jnp.float32(bias)}
    return {"params": {**variables["params"], name: new}}


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("shape", [(1, 16, 16, 1), (2, 13, 18, 1), (1, 7, 33, 3), (3, 1, 2, 2)])
def test_output_is_as_large_as_the_image(shape, stem):
    net = UNet(width=4, depth=3, stem=stem)
    output, _ = jax.eval_shape(net.init_with_output, KEY, jnp.zeros(shape))
    assert output.shape == (*shape[:3], 2)
    assert output.dtype == jnp.float32


def test_odd_sizes_are_edge_padded_and_cropped_back_in_place(variables):
    image = BATCH.image[:, :13, :14]
    padded = np.pad(image, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="edge")
    expected = forward(variables, padded)[:, :13, :14]
    assert_allclose(forward(variables, image), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "channels", "golden"),
    [
        # Width 4, depth 2, by hand. A block of c channels has 18 c c in two kernels and 4 c in two
        # norms: 304 of 4, 672 of 6. Stem: 9 * 8 * 4; down: 16 * 6; up: norm 12, 6 * 4 + 4; then two
        # blocks of 4 and one of 6, norm 8, unfolding 4 * 16 + 16, last 9 * 6 * 4 + 4, head 10.
        (SIZE, 1, 288 + 96 + 40 + 2 * 304 + 672 + 8 + 80 + 220 + 10),
        (SIZE, 3, 2022 + 9 * 16 * 4 + 9 * 4 * 4),
        ({**SIZE, "stem": 1}, 1, 2022 - 9 * 6 * 4 - 80 - 220),
        # Levels of 24, 36, 48, 60; blocks of 10464, 23472, 41664, 65040.
        (
            {},
            1,
            (9 * 8 * 24 + 10464 + 23472 + 41664 + 65040)
            + (96 * 36 + 144 * 48 + 192 * 60)
            + (120 + 61 * 48 + 96 + 49 * 36 + 72 + 37 * 24 + 41664 + 23472 + 10464)
            + (48 + 25 * 32 + 91 * 8 + 18),
        ),
    ],
)
def test_number_of_parameters(options, channels, golden):
    variables = jax.eval_shape(unet(**options).init, KEY, jnp.zeros((16, 16, channels)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == golden


def test_a_plain_block_is_two_convolutions():
    net, residual = (UNet(width=8, depth=1, stem=1, residual=kind) for kind in (False, True))
    image = BATCH.image[:1]
    variables = parity.fill(jax.eval_shape(net.init, KEY, image), np.random.default_rng(0))
    params = variables["params"]

    def act(x, number):
        return nn.relu(nn.GroupNorm(2).apply({"params": params[f"GroupNorm_{number}"]}, x))

    def literally(params, add):
        def conv(x, number):
            kernel = params[f"Conv_{number}"]["kernel"]
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=numbers
            )

        x = conv(jnp.concatenate([(image - 0.3) / 0.3, local_contrast(image) / 0.1], -1), 0)
        x = add * x + conv(act(conv(act(x, 0), 1), 1), 2)
        return conv(act(x, 2), 3) + params["Conv_3"]["bias"].reshape(1, 1, 1, -1)

    for one, add in ((net, 0.0), (residual, 1.0)):
        found = jax.jit(one.apply, compiler_options=QUICK)(variables, image)
        expected = jax.jit(literally, compiler_options=QUICK)(params, add)
        assert_allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    "lift", [lambda f: f, jax.jit, lambda f: lambda x: jax.vmap(f)(x[None])[0]]
)
def test_local_contrast_is_the_difference_from_a_uniform_filter(lift):
    x = np.float32(RNG.random((2, 7, 5, 3)))
    expected = x - ndimage.uniform_filter(np.float64(x), (1, 3, 3, 1), mode="nearest")
    assert_allclose(lift(local_contrast)(jnp.asarray(x)), expected, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 5, 7, 10, 24, 32])
def test_any_width_is_possible(width):
    net = UNet(width=width, depth=4)
    output, _ = jax.eval_shape(net.init_with_output, KEY, jnp.zeros((1, 16, 16, 1)))
    assert output.shape == (1, 16, 16, 2)


@pytest.mark.parametrize("draw", [draw_plain, draw_dropping])
def test_one_sample_is_the_probability_of_the_logit(draw, variables):
    expected = expit(np.asarray(forward(variables, BATCH.image))[..., :1])
    found = draw(variables, KEY, BATCH.image, 1)
    assert found.shape == (1, 4, 16, 16, 1)
    assert_allclose(found[0], expected, atol=1e-6)
    assert_array_equal(found, draw(variables, jax.random.key(7), BATCH.image, 1))


def test_samples_without_dropout_are_normal_quantiles_of_the_std(variables):
    flat = with_head(variables, bias=[0.4, -3.0])
    found = np.asarray(draw_plain(flat, KEY, BATCH.image, 4))
    z = ndtri([0.125, 0.375, 0.625, 0.875])
    z /= z.std()
    expected = expit(0.4) + z * np.log1p(np.exp(-3.0))
    assert_allclose(found, np.broadcast_to(expected[:, None, None, None, None], found.shape), 2e-6)
    assert_allclose(found.mean(0), expit(0.4), rtol=1e-6)
    # A std of 3 has no room: every step ends at 1, or as far on the other side.
    wide = np.asarray(draw_plain(with_head(flat, bias=[0.4, 3.0]), KEY, BATCH.image, 4))
    ends = np.repeat([2 * expit(0.4) - 1, 1], 2)
    assert_allclose(wide, np.broadcast_to(ends[:, None, None, None, None], wide.shape), rtol=1e-6)


def test_dropout_draws_depend_on_key_and_number_and_not_on_batch_mates(variables):
    # No std: whatever differs between draws comes from dropout.
    certain = with_head(variables, bias=[0.0, -30.0], kernel=[1.0, 0.0])
    draws = np.asarray(draw_dropping(certain, KEY, BATCH.image, 3))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (np.abs(draws[one] - draws[other]).max((1, 2, 3)) > 0.01).all()
    again = draw_dropping(certain, jax.random.key(2), BATCH.image, 3)
    assert (np.abs(draws - again).max((2, 3, 4)) > 0.01).all()
    alone = draw_dropping(certain, KEY, BATCH.image[2:3], 3)
    assert_allclose(alone, draws[:, 2:3], atol=1e-5)
    reverse = draw_dropping(certain, KEY, BATCH.image[::-1], 3)
    assert_allclose(reverse, draws[:, ::-1], atol=1e-5)


def test_a_loss_with_a_key_per_example_can_be_split_over_devices(variables):
    keys = jax.random.split(KEY, 4)
    whole = dropping_loss(variables, keys, BATCH)
    halves = [
        dropping_loss(variables, keys[part], jax.tree.map(lambda a, part=part: a[part], BATCH))
        for part in (slice(0, 2), slice(2, 4))
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5), whole, mean)
    other, _ = dropping_loss(variables, keys[::-1], BATCH)
    assert abs(other - whole[0]) > 1e-4  # dropout is on


def test_loss_and_the_gradient_of_both_heads(variables):
    logit, spread = np.split(np.float64(forward(variables, BATCH.image)), 2, axis=-1)
    std = np.log1p(np.exp(spread))
    bce = np.mean(np.log1p(np.exp(logit)) - BATCH.label * logit)
    squares = np.mean((std - BATCH.label_std) ** 2)
    (loss, parts), gradient = plain_gradient(variables, KEY, BATCH)
    assert_allclose([loss, parts["bce"], parts["std"]], [bce + squares, bce, squares], rtol=1e-5)
    bias = [
        np.mean(expit(logit) - BATCH.label),
        np.mean(2 * (std - BATCH.label_std) * expit(spread)),
    ]
    gradient = gradient["params"][head(variables)]
    assert_allclose(gradient["bias"], bias, rtol=1e-4, atol=1e-8)
    assert abs(bias[1]) > 1e-6
    assert np.abs(gradient["kernel"][..., 1]).max() > 1e-6


def test_std_weight_scales_its_part_alone(variables):
    value, parts = jax.jit(
        unet(**SIZE, head=mean_and_std(std_weight=3.0)).loss, compiler_options=QUICK
    )(variables, KEY, BATCH)
    assert_allclose(value, parts["bce"] + 3 * parts["std"], rtol=1e-6)


def test_starts_at_the_rate_of_anomalies_everywhere(fresh):
    assert_allclose(draw_plain(fresh, KEY, BATCH.image, 1), 0.02, rtol=1e-5)


def test_learns_one_batch_by_heart(variables):
    optimizer = optax.adam(2e-2)
    p = np.float64(BATCH.label)
    floor = -np.mean(xlogy(p, p) + xlogy(1 - p, 1 - p))

    @jax.jit
    def step(params, state):
        (_, parts), gradient = jax.value_and_grad(PLAIN.loss, has_aux=True)(params, KEY, BATCH)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, update), state, parts

    params, state = variables, optimizer.init(variables)
    for _ in range(120):
        params, state, parts = step(params, state)
    before = plain_gradient(variables, KEY, BATCH)[0][1]
    assert before["bce"] - floor > 0.2
    assert parts["bce"] - floor < 0.01
    assert parts["std"] < before["std"] / 3


def test_thick_slices_are_not_folded_while_they_are_much_coarser():
    assert strides_of((1, 1), 3) == [(2, 2)] * 3
    # 5 mm slices of 1 mm pixels: the planes are halved to 4 mm, then all axes are.
    assert strides_of((5.0, 1.0, 1.0), 4) == [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert strides_of((2.0, 1.0, 1.0), 2) == [(2, 2, 2), (2, 2, 2)]


def test_a_volume_of_thick_equal_slices_is_judged_as_its_slice(variables):
    # Kernels that look at their own slice alone make a volumetric network of the planar one, and
    # equal slices have the contrast and the groups' statistics of one.
    def thicken(leaf):
        if leaf.ndim != 4:
            return leaf
        own = np.zeros((leaf.shape[0], *leaf.shape), np.float32)
        own[len(own) // 2] = leaf
        return own

    volumetric = UNet(**SIZE, spacing_mm=(40.0, 1.0, 1.0))
    slices = BATCH.image[:2, :13, :14]
    volumes = np.repeat(slices[:, None], 3, 1)
    found = jax.jit(volumetric.apply, compiler_options=QUICK)(
        jax.tree.map(thicken, variables), volumes
    )
    expected = np.repeat(np.asarray(forward(variables, slices))[:, None], 3, 1)
    assert_allclose(found, expected, atol=2e-5)
    assert expected.std() > 0.05
