"""Layers that several networks share, for images (B, H, W, C) and volumes (B, D, H, W, C) alike."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

CHANNELS_PER_PLACE = 8  # so many or more, and a CPU is faster with a product of matrices


def halvings(x):
    """Strides that halve every spatial axis of x."""
    return (2,) * (x.ndim - 2)


def convolve(x, kernel, strides, padding, **options):
    """`jax.lax.conv_general_dilated` as `nn.Conv` calls it, without dilation and feature groups.

    On a CPU other ways are faster. Volumes (stride 1 and "SAME" only): their slices become images
    whose channels are those of their neighbours too; the 3-D convolution takes 4 to 20 times as
    long there, and its gradients longer still. Few channels: `in_pairs`. Few places with many
    channels: `by_product`.
    """
    conv = jax.lax.conv_general_dilated
    plain = strides == (1, 1) and padding == "SAME" and kernel.shape[:2] == (3, 3)
    places = math.prod(x.shape[1:3]) // math.prod(strides)
    if x.ndim == 5:
        on_cpu = _by_slices
    elif kernel.shape[0] > 1 and places * CHANNELS_PER_PLACE <= x.shape[3]:
        on_cpu = functools.partial(by_product, strides=strides, padding=padding)
    elif plain and kernel.shape[-1] <= 8 and x.shape[-2] % 2 == 0:
        on_cpu = in_pairs
    else:
        return conv(x, kernel, strides, padding, **options)

    def whole(x, kernel):
        return conv(x, kernel, strides, padding, **options)

    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=whole)


def _by_slices(x, kernel):
    depth, taps = x.shape[1], kernel.shape[0]
    padded = jnp.pad(x, [(taps // 2 * (axis == 1),) * 2 for axis in range(5)])
    near = [jax.lax.slice_in_dim(padded, t, t + depth, axis=1) for t in range(taps)]
    slices = jnp.concatenate(near, -1).reshape(-1, *x.shape[2:4], taps * x.shape[-1])
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    numbers = "NHWC", "HWIO", "NHWC"
    out = jax.lax.conv_general_dilated(slices, flat, (1, 1), "SAME", dimension_numbers=numbers)
    return out.reshape(*x.shape[:-1], -1)


def by_product(x, kernel, *, strides, padding):
    """The convolution of images (B, H, W, C) as one product of matrices, each row a window.

    With 512 channels a CPU does 2 x 2 places in a sixtieth of the time this way, 4 x 4 in half;
    with 96 channels 2 x 2 in a tenth, but 4 x 4 are slower.
    """
    sizes = kernel.shape[:2]
    if padding == "SAME":
        padding = jax.lax.padtype_to_pads(x.shape[1:3], sizes, strides, "SAME")
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    ends = [x.shape[axis + 1] - sizes[axis] + 1 for axis in (0, 1)]
    windows = [
        x[:, row : row + ends[0] : strides[0], column : column + ends[1] : strides[1]]
        for row in range(sizes[0])
        for column in range(sizes[1])
    ]
    return jnp.concatenate(windows, -1) @ kernel.reshape(-1, kernel.shape[-1])


def in_pairs(x, kernel):
    """The convolution of images (B, H, W, C), W even, by a kernel (3, 3, C, K) with "SAME" padding.

    Two neighbouring columns are taken as one of twice the channels. Half of the larger kernel is
    zero, yet a CPU, whose vectors are 16 channels long, needs 0.7 of the time (C 10, K 8).
    """
    columns = jnp.pad(kernel, ((0, 0), (2, 2), (0, 0), (0, 0)))
    kernel = jnp.concatenate([columns[:, 1:], columns[:, :-1]], -1)
    kernel = kernel.reshape(3, 3, -1, kernel.shape[-1])
    pairs = x.reshape(*x.shape[:2], x.shape[2] // 2, -1)
    numbers = "NHWC", "HWIO", "NHWC"
    out = jax.lax.conv_general_dilated(pairs, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return out.reshape(*x.shape[:-1], -1)


def repeat(x, strides=None):
    """Nearest-neighbour upsampling, as a broadcast: `image.resize` is far slower on CPU.

    strides: one factor per spatial axis, by default two.
    """
    strides = strides or halvings(x)
    sizes, channels = x.shape[1:-1], x.shape[-1]
    thin = [part for size in sizes for part in (size, 1)]
    full = [part for pair in zip(sizes, strides, strict=True) for part in pair]
    large = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    x = jnp.broadcast_to(x.reshape(-1, *thin, channels), (x.shape[0], *full, channels))
    return x.reshape(-1, *large, channels)


def mean_pool(x):
    """The mean of every block of two along every spatial axis (even sizes)."""
    axes = tuple(range(2, 2 * x.ndim - 3, 2))
    parts = [part for size in x.shape[1:-1] for part in (size // 2, 2)]
    return x.reshape(x.shape[0], *parts, x.shape[-1]).mean(axes)


def max_pool(x):
    """The maximum of 3 x 3 neighbours at every other pixel (even sizes, stride 2, padding 1).

    By slices: the gradient of `nn.max_pool` takes six times as long on CPU. Ties share it.
    """
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        x = jnp.concatenate([jax.lax.slice_in_dim(x, 0, 1, axis=axis), x], axis)
        before = jax.lax.slice_in_dim(x, 0, size, 2, axis)
        here = jax.lax.slice_in_dim(x, 1, size + 1, 2, axis)
        after = jax.lax.slice_in_dim(x, 2, size + 1, 2, axis)
        x = jnp.maximum(jnp.maximum(before, here), after)
    return x


def interpolate(x):
    """Linear upsampling by two along every spatial axis, by half-pixel centres, edges repeated.

    That of `jax.image.resize(..., "linear")` and torch's bilinear with align_corners=False.
    """
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, size - 1))
        before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
        both = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
        x = both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def interpolate_aligned(x):
    """Linear upsampling by two along every spatial axis, corners on corners (align_corners)."""
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        place = jnp.arange(2 * size) * (size - 1) / (2 * size - 1)
        # As a small matrix product: gathering rows is slower on CPU and its gradient much more so.
        weights = jnp.maximum(0, 1 - jnp.abs(place[:, None] - jnp.arange(size)[None, :]))
        x = jnp.moveaxis(jnp.tensordot(x, weights.astype(x.dtype), ((axis,), (1,))), -1, axis)
    return x


def space_to_depth(x, strides=None):
    """(B, H, W, C) -> (B, H/2, W/2, 4C), without losing a value; strides as for `repeat`."""
    strides = strides or halvings(x)
    n, sizes = len(strides), [a // b for a, b in zip(x.shape[1:-1], strides, strict=True)]
    parts = [part for pair in zip(sizes, strides, strict=True) for part in pair]
    order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    x = x.reshape(x.shape[0], *parts, x.shape[-1]).transpose(order)
    return x.reshape(x.shape[0], *sizes, -1)


def depth_to_space(x, strides=None):
    """(B, H, W, 4C) -> (B, 2H, 2W, C), the inverse of `space_to_depth`."""
    strides = strides or halvings(x)
    n, sizes = len(strides), x.shape[1:-1]
    order = (0, *(i + j for i in range(1, n + 1) for j in (0, n)), 2 * n + 1)
    x = x.reshape(x.shape[0], *sizes, *strides, -1).transpose(order)
    return x.reshape(x.shape[0], *(a * b for a, b in zip(sizes, strides, strict=True)), x.shape[-1])


class ConvTranspose(nn.Module):
    """Transposed convolution of an image by an odd kernel, stride 2: (B, H, W, C) to 2 H, 2 W.

    As torch's with padding size // 2 and output padding 1, for the mirror image of its kernel, and
    as `nn.ConvTranspose` but that the four output pixels of an input pixel are channels of one
    plain convolution: its gradient takes an eighth of the time on CPU.
    """

    features: int
    size: int
    kernel_init: Callable
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        size, inputs = self.size, x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (size, size, inputs, self.features))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        reach, taps = size // 2, (size + 1) // 2
        padded = jnp.pad(kernel, ((1, 1), (1, 1), (0, 0), (0, 0)))
        # An even output pixel sees every other row of the kernel, an odd one those in between.
        first = [reach % 2 + 1 - odd for odd in (0, 1)]
        phases = [
            padded[row : row + 2 * taps : 2, column : column + 2 * taps : 2]
            for row in first
            for column in first
        ]
        near = reach // 2
        pad = ((near, taps - 1 - near),) * 2
        numbers = "NHWC", "HWIO", "NHWC"
        y = convolve(x, jnp.concatenate(phases, -1), (1, 1), pad, dimension_numbers=numbers)
        return depth_to_space(y)


def pad_to_multiple(x, multiples):
    """Repeats the far edges until every spatial size is a multiple of its number."""
    far = [(0, -size % by) for size, by in zip(x.shape[1:-1], multiples, strict=True)]
    return jnp.pad(x, ((0, 0), *far, (0, 0)), mode="edge")


def crop(x, sizes):
    """Undoes `pad_to_multiple`: the first `sizes` of the spatial axes."""
    return x[(slice(None), *(slice(size) for size in sizes))]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(x, scale, bias, groups):
    """Group normalisation of x (B, ..., C) by scale and bias (C,); float32.

    As `flax.linen.GroupNorm` with its defaults. Both passes first sum over places, channel by
    channel: with its gradient it takes less than half of flax's time on CPU.
    """
    return _normalise(x, scale, bias, groups)[0]


def _normalise(x, scale, bias, groups):
    kept, x = x, x.astype(jnp.float32)
    mean, second = (_over_groups(each, x, groups) for each in (_sum(x), _sum(x * x)))
    inverse_std = jax.lax.rsqrt(jnp.maximum(0.0, second - mean * mean) + 1e-6)
    y = (x - _spread(mean, x)) * _spread(inverse_std * scale[None], x)
    return y + bias.reshape(*[1] * (x.ndim - 1), -1), (kept, mean, inverse_std, scale)


def _normalise_backwards(groups, kept, dy):
    given, mean, inverse_std, scale = kept
    x = given.astype(jnp.float32)
    bias_part = _sum(dy)
    scale_part = inverse_std * (_sum(dy * x) - mean * bias_part)
    shift, slope = (
        inverse_std * _over_groups(scale[None] * part, x, groups)
        for part in (bias_part, scale_part)
    )
    slope = inverse_std * slope
    dx = dy * _spread(inverse_std * scale[None], x) - x * _spread(slope, x)
    dx = dx + _spread(slope * mean - shift, x)
    return dx.astype(given.dtype), scale_part.sum(0), bias_part.sum(0)


normalise.defvjp(_normalise, _normalise_backwards)


def _sum(x):
    """Over all places: (B, ..., C) -> (B, C)."""
    return x.sum(tuple(range(1, x.ndim - 1)))


def _over_groups(sums, x, groups):
    """Sums over the places of x -> the mean over places and group, for every channel: (B, C)."""
    size = x.shape[-1] // groups
    places = math.prod(x.shape[1:-1])
    means = sums.reshape(sums.shape[0], groups, size).sum(-1) / (places * size)
    return jnp.repeat(means, size, axis=-1)


def _spread(values, x):
    """(B, C) -> (B, 1, ..., C), to go with x."""
    return values.reshape(values.shape[0], *[1] * (x.ndim - 2), -1)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018): up to eight groups, of four channels or more."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        groups = math.gcd(channels, max(1, min(8, channels // 4)))
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return normalise(x, scale, bias, groups).astype(self.dtype or jnp.float32)


def group_norm(x, dtype=None):
    """A layer of `GroupNorm`."""
    return GroupNorm(dtype)(x)


def activate(x, dtype=None):
    """`GroupNorm` and ReLU."""
    return nn.relu(group_norm(x, dtype))


def drop_channels(x, rate, keys):
    """Zeroes whole channels per example and scales the rest (spatial dropout, Tompson et al. 2015).

    x: (B, ..., C); keys: (B,).
    """
    shape = (1,) * (x.ndim - 2) + x.shape[-1:]
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape))
    return jnp.where(draw(keys), x / (1.0 - rate), 0.0)
