"""The ResNet-18 encoder-decoder of Natural Synthetic Anomalies."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from caal_jax.localisers.deterministic import deterministic
from caal_jax.localisers.heads import mean_and_std
from caal_jax.localisers.layers import (
    ConvTranspose,
    convolve,
    crop,
    drop_channels,
    group_norm,
    interpolate_aligned,
    max_pool,
    pad_to_multiple,
)


class NSAResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) down, residual blocks of transposed convolutions up, no skips.

    width: channels of the first stage; the decoder ends with a quarter of them.
    dropout: rate of spatial dropout before the second convolution of each block.
    initial: what each output channel starts at, about; added to the published network, which
        starts at 0.
    norm: `norm(x, dtype)`; group normalisation, where the original has batch normalisation.
    dtype: of the convolutions' and norms' results; parameters and outputs are float32.
    Any H, W: the input is edge-padded to a multiple of 32 and cropped back.
    Paper: Schlüter et al. 2022, arXiv 2109.15222. Reference: a PyTorch restatement of its code,
    where kernels of transposed convolutions are flipped.
    """

    width: int = 64
    dropout: float = 0.0
    initial: tuple[float, ...] = mean_and_std().initial
    norm: Callable = group_norm
    dtype: Any = None

    @nn.compact
    def __call__(self, images, keys=None):
        """images (B, H, W, C), keys (B,) or None for no dropout -> (B, H, W, K) float32."""
        sizes, w, outputs = images.shape[1:-1], self.width, len(self.initial)
        block = 0

        def conv(features, size, stride=1):
            return nn.Conv(
                features,
                (size, size),
                (stride, stride),
                padding=size // 2,
                use_bias=False,
                kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
                dtype=self.dtype,
                conv_general_dilated=convolve,
            )

        def double(features, size):
            init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
            return ConvTranspose(features, size, init, self.dtype)

        def residual(x, features, first, changes):
            nonlocal block
            norm = functools.partial(self.norm, dtype=self.dtype)
            y = nn.relu(norm(first(features, 3)(x)))
            if self.dropout and keys is not None:
                block_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, block)
                y = drop_channels(y, self.dropout, block_keys)
            block += 1
            y = norm(conv(features, 3)(y))
            if changes:
                x = norm(first(features, 1)(x))
            return nn.relu(x + y)

        x = conv(w, 7, 2)(pad_to_multiple(images, (32, 32)))
        x = nn.relu(self.norm(x, self.dtype))
        x = max_pool(x)
        for features, stride in ((w, 1), (2 * w, 2), (4 * w, 2), (8 * w, 2)):
            x = residual(x, features, functools.partial(conv, stride=stride), stride == 2)
            x = residual(x, features, conv, False)
        for features in (4 * w, 2 * w):
            x = nn.relu(conv(features, 1)(x))
        for features in (w, w // 2, w // 4):
            x = residual(x, features, double, True)
        x = double(outputs, 7)(interpolate_aligned(x))
        start = self.param("initial", lambda _: jnp.array(self.initial))
        return crop(x.astype(jnp.float32), sizes) + jnp.broadcast_to(start, (1, 1, 1, outputs))


def nsa_resnet18(*, width=64, dropout=0.0, head=None, compute_dtype="float32"):
    """An `NSAResNet18` as a `Localiser` of images (H, W, C).

    head: a `Head`, by default `mean_and_std()`; the paper's are `soft_binary()` and, for its
    unbounded labels, a regression (`intensity()`).
    """
    head = head or mean_and_std()
    net = NSAResNet18(width, dropout, head.initial, dtype=compute_dtype)
    return deterministic(net, head, dropout=dropout)
