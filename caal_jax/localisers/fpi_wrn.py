"""The wide residual encoder-decoder of Foreign Patch Interpolation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from caal_jax.errors import InputError
from caal_jax.localisers.deterministic import deterministic
from caal_jax.localisers.heads import mean_and_std
from caal_jax.localisers.layers import (
    crop,
    drop_channels,
    group_norm,
    mean_pool,
    pad_to_multiple,
    repeat,
)


class FPIWideResNet(nn.Module):
    """Pre-activation wide residual blocks (Zagoruyko & Komodakis 2016) down and up, no skips.

    depth: 10 m + 6 for the published "dec" (inputs are halved four times), 12 m + 7 for
        "decdeeper" (five times), with m >= 1 blocks per encoder stage.
    width: widening factor k; the channels are 16 to 64 k.
    dropout: rate of spatial dropout before the second convolution of each block.
    initial: what each output channel starts at, about; added to the published network, which
        starts at 0.
    norm: `norm(x, dtype)`; group normalisation, where the original has batch normalisation.
    dtype: of the convolutions' and norms' results; parameters and outputs are float32.
    Any H, W: the input is edge-padded to a multiple of 16 or 32 and cropped back.
    Paper: Tan et al. 2021, arXiv 2011.04197. Reference: a PyTorch restatement of its code.
    """

    depth: int = 16
    width: int = 4
    dropout: float = 0.0
    initial: tuple[float, ...] = mean_and_std().initial
    norm: Callable = group_norm
    dtype: Any = None

    @nn.compact
    def __call__(self, images, keys=None):
        """images (B, H, W, C), keys (B,) or None for no dropout -> (B, H, W, K) float32."""
        sizes, k, outputs = images.shape[1:-1], self.width, len(self.initial)
        deeper = self.depth % 12 == 7
        repeats = (self.depth - 7) // 12 if deeper else (self.depth - 6) // 10
        encoder = [16 * k, 32 * k, 64 * k, 64 * k, 64 * k] + [64 * k] * deeper
        decoder = [32 * k] * deeper + [32 * k, 16 * k, 16, outputs]
        block = 0

        def conv(features, size, stride=1):
            return nn.Conv(
                features,
                (size, size),
                (stride, stride),
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
            )

        def residual(x, features, down=1, up=1):
            nonlocal block
            a = nn.relu(self.norm(x, self.dtype))
            if features != x.shape[-1]:
                x = conv(features, 1, down)(a)
            elif down == 2:
                x = mean_pool(x)
            y = conv(features, 3, down)(a)
            if up == 2:
                x, y = repeat(x), repeat(y)
            y = nn.relu(self.norm(y, self.dtype))
            if self.dropout and keys is not None:
                block_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, block)
                y = drop_channels(y, self.dropout, block_keys)
            block += 1
            return x + conv(features, 3)(y)

        x = conv(16, 3)(pad_to_multiple(images, [2 ** (len(encoder) - 1)] * 2))
        for stage, features in enumerate(encoder):
            x = residual(x, features, down=2 if stage else 1)
            for _ in range(repeats - 1):
                x = residual(x, features)
        for features in decoder:
            x = residual(x, features, up=2)
        start = self.param("initial", lambda _: jnp.array(self.initial))
        return crop(x.astype(jnp.float32), sizes) + jnp.broadcast_to(start, (1, 1, 1, outputs))


def fpi_wrn(*, depth=16, width=4, dropout=0.0, head=None, compute_dtype="float32"):
    """An `FPIWideResNet` as a `Localiser` of images (H, W, C).

    head: a `Head`, by default `mean_and_std()`; the paper's are `soft_binary()` for brain MRI and
    `classes()` for abdominal CT. Raises `InputError` for a depth that fits neither variant.
    """
    if depth < 16 or (depth % 10 != 6 and depth % 12 != 7):
        raise InputError(
            "config.depth",
            found=depth,
            expected="16, 26, ... ('dec') or 19, 31, ... ('decdeeper') for fpi_wrn",
            remedy="Set --config.depth=16, or 19 for images of 512 x 512.",
        )
    head = head or mean_and_std()
    net = FPIWideResNet(depth, width, dropout, head.initial, dtype=compute_dtype)
    return deterministic(net, head, dropout=dropout)
