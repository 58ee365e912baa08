"""A U-Net for images and volumes that is cheap where CPUs and accelerators are slow."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from caal_jax.localisers.deterministic import deterministic
from caal_jax.localisers.heads import mean_and_std
from caal_jax.localisers.layers import (
    activate,
    convolve,
    crop,
    depth_to_space,
    drop_channels,
    pad_to_multiple,
    repeat,
    space_to_depth,
)


def local_contrast(images):
    """The difference of every pixel from the mean of its 3 x 3 (x 3) neighbours, edges repeated."""
    spatial = images.ndim - 2
    mean = jnp.pad(images, ((0, 0), *[(1, 1)] * spatial, (0, 0)), mode="edge")
    for axis in range(1, spatial + 1):
        window = tuple(3 if a == axis else 1 for a in range(images.ndim))
        mean = jax.lax.reduce_window(mean, 0.0, jax.lax.add, window, (1,) * images.ndim, "valid")
        mean = mean / 3
    return images - mean


def strides_of(spacing_mm, number):
    """Strides of `number` successive reductions of a grid, one tuple per reduction.

    spacing_mm: per spatial axis. An axis is halved unless its spacing is more than twice that of
    the finest axis at that level: thick slices are first left as they are (as nnU-Net does).
    """
    strides, spacing = [], spacing_mm
    for _ in range(number):
        strides.append(tuple(2 if size <= 2 * min(spacing) else 1 for size in spacing))
        spacing = [a * b for a, b in zip(spacing, strides[-1], strict=True)]
    return strides


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) of pre-activation residual blocks (He et al. 2016).

    width: channels of the first level; each of the `depth` levels adds half of that.
    dropout: rate of spatial dropout before the second convolution of each block.
    stem: 2 folds 2 x 2 (x 2) pixels into channels first and unfolds them for the last layers (a
        quarter of the work, of volumes an eighth); 1 works at full resolution throughout.
    spacing_mm: per spatial axis; None means alike along all. See `strides_of`.
    initial: what each output channel starts at.
    dtype: of the convolutions' and norms' results; parameters and outputs are float32.
    residual: False for plain blocks, which do not add their input to what they make of it.
    Besides the image it sees each pixel's difference from its neighbours, the fine texture. Skips
    are added. Any size: the input is edge-padded to a multiple of the total stride and cropped
    back.
    """

    width: int = 24
    depth: int = 4
    dropout: float = 0.0
    stem: int = 2
    spacing_mm: tuple[float, ...] | None = None
    initial: tuple[float, ...] = mean_and_std().initial
    dtype: Any = None
    residual: bool = True

    @nn.compact
    def __call__(self, images, keys=None):
        """images (B, [D,] H, W, C), keys (B,) or None for no dropout -> (B, [D,] H, W, K)."""
        sizes = images.shape[1:-1]
        spatial = len(sizes)
        kernel, pointwise = (3,) * spatial, (1,) * spatial
        strides = strides_of(self.spacing_mm or pointwise, self.depth)
        stem, *downs = strides if self.stem == 2 else [pointwise, *strides[: self.depth - 1]]
        total = [math.prod(axis) for axis in zip(stem, *downs, strict=True)]
        images = pad_to_multiple(images, total)
        images = jnp.concatenate([(images - 0.3) / 0.3, local_contrast(images) / 0.1], -1)
        features = [self.width * (level + 2) // 2 for level in range(self.depth)]
        block = 0

        def conv(size, window, **options):
            return nn.Conv(size, window, dtype=self.dtype, conv_general_dilated=convolve, **options)

        def convolve_twice(x):
            nonlocal block
            y = conv(x.shape[-1], kernel, use_bias=False)(activate(x, self.dtype))
            if self.dropout and keys is not None:
                block_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, block)
                y = drop_channels(y, self.dropout, block_keys)
            block += 1
            y = conv(x.shape[-1], kernel, use_bias=False)(activate(y, self.dtype))
            return x + y if self.residual else y

        x = conv(features[0], kernel, use_bias=False)(space_to_depth(images, stem))
        skips = []
        for level, size in enumerate(features):
            if level:
                x = conv(size, pointwise, use_bias=False)(space_to_depth(x, downs[level - 1]))
            x = convolve_twice(x)
            skips.append(x)
        for level in reversed(range(self.depth - 1)):
            # Narrowing before doubling does the 1x1 convolution on a quarter of the pixels.
            x = conv(features[level], pointwise)(activate(x, self.dtype))
            x = convolve_twice(repeat(x, downs[level]) + skips[level])
        x = activate(x, self.dtype)
        if self.stem == 2:
            last = max(4, self.width // 3)
            x = depth_to_space(conv(math.prod(stem) * last, pointwise)(x), stem)
            x = jnp.concatenate([nn.relu(x), images.astype(x.dtype)], -1)
            x = nn.relu(conv(last, kernel)(x))
        head = nn.Conv(
            len(self.initial),
            pointwise,
            kernel_init=nn.initializers.zeros,
            bias_init=lambda *_: jnp.array(self.initial),
        )
        return crop(head(x.astype(jnp.float32)), sizes)


def unet(
    *,
    width=24,
    depth=4,
    dropout=0.0,
    stem=2,
    residual=True,
    spacing_mm=None,
    head=None,
    compute_dtype="float32",
):
    """A `UNet` as a `Localiser`; images (H, W, C) or volumes (D, H, W, C), as it is initialised.

    head: a `Head`, by default `mean_and_std()`. Other options: see `UNet`.
    """
    head = head or mean_and_std()
    net = UNet(width, depth, dropout, stem, spacing_mm, head.initial, compute_dtype, residual)
    return deterministic(net, head, dropout=dropout)
