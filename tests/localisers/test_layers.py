import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.localisers.layers import (
    ConvTranspose,
    GroupNorm,
    activate,
    convolve,
    crop,
    depth_to_space,
    drop_channels,
    interpolate,
    interpolate_aligned,
    max_pool,
    mean_pool,
    pad_to_multiple,
    repeat,
    space_to_depth,
)

RNG = np.random.default_rng(0)
KEY = jax.random.key(1)
SHAPES = [(2, 6, 10, 3), (2, 4, 6, 2, 3)]  # an image's and a volume's


def draw(shape):
    return RNG.random(shape, np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_repeat_repeats_every_pixel(shape):
    x = draw(shape)
    expected = x
    for axis in range(1, x.ndim - 1):
        expected = expected.repeat(2, axis)
    assert_array_equal(repeat(jnp.asarray(x)), expected)
    assert_array_equal(repeat(x, (1,) * (x.ndim - 3) + (3,)), x.repeat(3, -2))


def test_space_to_depth_keeps_every_value():
    x = draw((2, 6, 10, 3))
    found = np.asarray(space_to_depth(jnp.asarray(x)))
    assert found.shape == (2, 3, 5, 12)
    for row in range(2):
        for column in range(2):
            first = 3 * (2 * row + column)
            assert_array_equal(found[..., first : first + 3], x[:, row::2, column::2])


def test_space_to_depth_of_volumes_with_thick_slices():
    x = draw((2, 3, 4, 6, 2))
    found = np.asarray(space_to_depth(x, (1, 2, 2)))
    assert_array_equal(found[:, 1], space_to_depth(x[:, 1]))
    assert_array_equal(depth_to_space(found, (1, 2, 2)), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_depth_to_space_is_the_inverse_of_space_to_depth(shape):
    x = draw(shape)
    assert_array_equal(depth_to_space(space_to_depth(jnp.asarray(x))), x)
    deep = draw((*shape[:-1], 16))
    assert_array_equal(space_to_depth(depth_to_space(jnp.asarray(deep))), deep)


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_pool_is_the_mean_of_blocks(shape):
    x = draw(shape)
    halves = x
    for axis in range(1, x.ndim - 1):
        even, odd = (np.take(halves, range(k, halves.shape[axis], 2), axis) for k in (0, 1))
        halves = (even + odd) / 2
    assert_allclose(mean_pool(x), halves, atol=1e-6)


def along_every_axis(x, places_of):
    """x interpolated linearly along every spatial axis at `places_of(size)`, in float64."""
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        x = np.apply_along_axis(
            lambda line, n=size: np.interp(places_of(n), np.arange(n), line), axis, np.float64(x)
        )
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_interpolation_by_pixel_centres(shape):
    x = draw(shape)
    # Between the first and last centres; beyond them np.interp repeats the edges, as we do.
    expected = along_every_axis(x, lambda n: (np.arange(2 * n) + 0.5) / 2 - 0.5)
    assert_allclose(interpolate(x), expected, atol=1e-6)
    large = (shape[0], *(2 * n for n in shape[1:-1]), shape[-1])
    assert_allclose(interpolate(x), jax.image.resize(x, large, "linear"), atol=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 2, 1)])
def test_interpolation_by_corners(shape):
    x = draw(shape)
    expected = along_every_axis(x, lambda n: np.linspace(0, n - 1, 2 * n))
    assert_allclose(interpolate_aligned(x), expected, atol=1e-6)


def test_max_pool_is_that_of_flax_and_its_gradient_too():
    x = RNG.normal(size=(2, 6, 10, 3)).astype(np.float32)  # negative edges: padding must not win

    def reference(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    assert_array_equal(max_pool(jnp.asarray(x)), reference(x))
    found, expected = (
        jax.grad(lambda x, f=f: (f(x) ** 2).sum())(jnp.asarray(x)) for f in (max_pool, reference)
    )
    assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_transposed_convolution_is_that_of_flax_with_the_same_kernel(size):
    x = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)
    kernel = RNG.normal(size=(size, size, 3, 2)).astype(np.float32)
    pad = (size - 1 - size // 2, size - size // 2)
    reference = nn.ConvTranspose(2, (size, size), (2, 2), padding=[pad] * 2, use_bias=False)
    expected = reference.apply({"params": {"kernel": kernel}}, x)
    ours = ConvTranspose(2, size, nn.initializers.zeros)
    found = ours.apply({"params": {"kernel": kernel}}, x)
    assert found.shape == (2, 8, 12, 2)
    assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 8, 1), (2, 3, 4, 9, 2)])
def test_padding_repeats_the_far_edges_and_cropping_undoes_it(shape):
    x = draw(shape)
    multiples = (4, 8, 2)[: x.ndim - 2]
    found = pad_to_multiple(x, multiples)
    far = [(0, -(-n // m) * m - n) for n, m in zip(shape[1:-1], multiples, strict=True)]
    assert_array_equal(found, np.pad(x, [(0, 0), *far, (0, 0)], mode="edge"))
    assert_array_equal(crop(found, shape[1:-1]), x)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (6, 1), (8, 2), (16, 4), (24, 6), (36, 4), (40, 8), (96, 8)]
)
def test_activation_normalises_groups_of_four_channels_or_more(channels, groups):
    class Activation(nn.Module):
        @nn.compact
        def __call__(self, x):
            return activate(x)

    x = np.float32(RNG.normal(3.0, 2.0, (2, 5, 4, channels)))
    scale, bias = np.float32(RNG.normal(size=(2, channels)))
    variables = {"params": {"GroupNorm_0": {"scale": scale, "bias": bias}}}
    parts = np.float64(x).reshape(2, 20, groups, -1)
    mean, var = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    normal = ((parts - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    found = Activation().apply(variables, x)
    assert_allclose(found, np.maximum(normal * scale + bias, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "lift"),
    [
        ((2, 5, 4, 24), lambda f: f),
        ((2, 5, 4, 24), jax.jit),
        ((2, 5, 4, 24), lambda f: lambda *a: vmapped(f, *a)),
        ((2, 3, 4, 2, 6), jax.jit),
    ],
)
def test_normalisation_and_its_gradients_are_those_of_flax(shape, lift):
    x, dy = (np.float32(RNG.normal(1.0, 2.0, shape)) for _ in range(2))
    scale, bias = np.float32(RNG.normal(size=(2, shape[-1])))
    variables = {"params": {"scale": scale, "bias": bias}}

    def both(net):
        def function(variables, x, dy):
            y, pull = jax.vjp(net.apply, variables, x)
            return y, pull(dy)

        return function

    reference = nn.GroupNorm(num_groups=max(1, min(8, shape[-1] // 4)))
    expected = jax.tree.leaves(both(reference)(variables, x, dy))
    found = jax.tree.leaves(lift(both(GroupNorm()))(variables, x, dy))
    for one, other in zip(found, expected, strict=True):
        assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def vmapped(function, *arguments):
    """`function` by a `vmap` over one example."""
    one = jax.tree.map(lambda a: a[None], arguments)
    return jax.tree.map(lambda a: a[0], jax.jit(jax.vmap(function))(*one))


def test_normalisation_in_bfloat16_keeps_its_sums_in_float32():
    x = jnp.asarray(RNG.normal(8.0, 1.0, (1, 64, 64, 4)), jnp.bfloat16)
    net = GroupNorm("bfloat16")
    variables = {"params": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}}
    found, pull = jax.vjp(net.apply, variables, x)
    assert found.dtype == jnp.bfloat16
    exact = np.float64(x)
    expected = (exact - exact.mean()) / exact.std()
    assert_allclose(np.float64(found), expected, atol=0.02)
    parts, dx = pull(jnp.ones_like(found))
    assert dx.dtype == jnp.bfloat16
    assert_allclose(parts["params"]["bias"], 64 * 64, rtol=1e-6)


@pytest.mark.parametrize(
    ("channels", "width", "options"),
    [
        (8, 6, {}),
        (3, 5, {}),  # odd widths have no pairs
        (3, 9, {"strides": (2, 2)}),
        (3, 9, {"padding": "VALID"}),
        (9, 1, {}),  # few places
        (9, 1, {"padding": 1}),
        (9, 3, {"strides": (2, 2)}),
        (9, 2, {"strides": (2, 1), "padding": 1}),
    ],
)
def test_narrow_and_small_convolutions_equal_those_of_jax_as_do_gradients(channels, width, options):
    inputs = 5 if width > 3 else 32
    x = np.float32(RNG.normal(size=(2, 4, width, inputs)))
    variables = {"params": {"kernel": np.float32(RNG.normal(size=(3, 3, inputs, channels)))}}

    def both(**how):
        net = nn.Conv(channels, (3, 3), use_bias=False, **options, **how)

        def function(x):
            y, pull = jax.vjp(net.apply, variables, x)
            return y, pull(jnp.cos(y))

        return jax.tree.leaves(jax.jit(function)(x))

    for one, other in zip(both(conv_general_dilated=convolve), both(), strict=True):
        assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("window", [(3, 3, 3), (1, 1, 1), (3, 1, 5)])
def test_convolutions_of_volumes_and_their_gradients_are_those_of_jax(window):
    x = np.float32(RNG.normal(size=(2, 4, 5, 7, 3)))
    variables = {"params": {"kernel": np.float32(RNG.normal(size=(*window, 3, 6)))}}

    def both(**how):
        net = nn.Conv(6, window, use_bias=False, **how)

        def function(variables, x):
            y, pull = jax.vjp(net.apply, variables, x)
            return y, pull(jnp.cos(y))

        return jax.tree.leaves(jax.jit(function)(variables, x))

    for one, other in zip(both(conv_general_dilated=convolve), both(), strict=True):
        assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_dropout_zeroes_whole_channels_and_scales_the_rest():
    x = np.float32(1 + RNG.random((64, 2, 3, 20)))
    found = np.asarray(drop_channels(jnp.asarray(x), 0.2, jax.random.split(KEY, 64)))
    kept = (found != 0).all((1, 2))
    assert_allclose(found, np.where(kept[:, None, None], x / np.float32(0.8), 0), rtol=1e-6)
    assert abs(kept.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / kept.size)
    assert (kept != kept[0]).any()
