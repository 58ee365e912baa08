"""A U-Net that is cheap where CPUs and accelerators are slow, with a mean and a std output."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import ndtri

from caal_jax.localisers.localiser import Localiser

# Anomalies cover a few percent of the pixels: starting at that rate saves the first steps.
INITIAL_PROBABILITY = 0.02


def double(x):
    """Nearest-neighbour upsampling by two, as a broadcast: `image.resize` is far slower on CPU."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(
        b, 2 * h, 2 * w, c
    )


def space_to_depth(x):
    """(B, H, W, C) -> (B, H/2, W/2, 4C), without losing a value."""
    b, h, w, c = x.shape
    return (
        x.reshape(b, h // 2, 2, w // 2, 2, c)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(b, h // 2, w // 2, 4 * c)
    )


def drop_channels(x, rate, keys):
    """Zeroes whole channels per example and scales the rest (spatial dropout, Tompson et al. 2015).

    x: (B, H, W, C); keys: (B,).
    """
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, (1, 1, x.shape[-1])))
    return jnp.where(draw(keys), x / (1.0 - rate), 0.0)


class ConvBlock(nn.Module):
    """3x3 convolution, group normalisation, ReLU; (B, H, W, C) -> (B, H/stride, W/stride, F)."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.features, (3, 3), strides=self.stride, use_bias=False)(x)
        # Groups of two channels or more: a group of one would erase its mean and scale.
        x = nn.GroupNorm(num_groups=max(1, min(8, self.features // 2)))(x)
        return nn.relu(x)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with strided convolutions and concatenated skips.

    width: channels of the first level, doubled at each of the `depth` levels.
    dropout: rate of spatial dropout before the second convolution of each block pair.
    stem: 2 folds 2 x 2 pixels into channels first and adds a thin full-resolution level at the
        end (a quarter of the work); 1 is the textbook network.
    Any H, W: the input is edge-padded to a multiple of the total stride and cropped back.
    """

    width: int = 16
    depth: int = 4
    dropout: float = 0.0
    stem: int = 2

    @nn.compact
    def __call__(self, images, keys=None):
        """images (B, H, W, C), keys (B,) or None for no dropout -> (B, H, W, 2) float32.

        Channel 0 is the anomaly logit, channel 1 the raw value of the label's std.
        """
        height, width = images.shape[1:3]
        multiple = self.stem * 2 ** (self.depth - 1)
        pad = ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0))
        images = jnp.pad(images, pad, mode="edge")
        layer = 0

        def pair(x, features, stride):
            nonlocal layer
            x = ConvBlock(features, stride)(x)
            if self.dropout and keys is not None:
                layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, layer)
                x = drop_channels(x, self.dropout, layer_keys)
            layer += 1
            return ConvBlock(features)(x)

        x = space_to_depth(images) if self.stem == 2 else images
        skips = []
        for level in range(self.depth):
            x = pair(x, self.width * 2**level, 2 if level else 1)
            skips.append(x)
        for level in reversed(range(self.depth - 1)):
            # Narrowing before doubling does the 1x1 convolution on a quarter of the pixels.
            x = double(nn.Conv(self.width * 2**level, (1, 1))(x))
            x = pair(jnp.concatenate([x, skips[level]], -1), self.width * 2**level, 1)
        if self.stem == 2:
            x = double(nn.Conv(max(4, self.width // 2), (1, 1))(x))
            x = ConvBlock(max(4, self.width // 2))(jnp.concatenate([x, images], -1))
        bias = jnp.array([jnp.log(INITIAL_PROBABILITY / (1 - INITIAL_PROBABILITY)), -3.0])
        x = nn.Conv(2, (1, 1), bias_init=lambda *_: bias)(x)
        return x[:, :height, :width].astype(jnp.float32)


def unet(*, width=16, depth=4, dropout=0.0, stem=2, std_weight=1.0):
    """A U-Net as a `Localiser`: soft binary target by cross-entropy, label std by regression.

    The loss is the binary cross-entropy of the logits with the soft label plus `std_weight` times
    the squared error of the predicted std (softplus) against `label_std`. Samples: draw s is
    mean + z_s * std, clipped to [0, 1], with z_s the S normal quantiles at (s + 1/2) / S, each on
    its own dropout mask where dropout is on.
    """
    net = UNet(width=width, depth=depth, dropout=dropout, stem=stem)

    def init(key, image):
        return net.init(key, image[None])

    def loss(variables, key, batch):
        keys = key if key.ndim else jax.random.split(key, batch.image.shape[0])
        logit, spread = jnp.split(net.apply(variables, batch.image, keys), 2, axis=-1)
        bce = optax.sigmoid_binary_cross_entropy(logit, batch.label).mean()
        std = jnp.square(nn.softplus(spread) - batch.label_std).mean()
        return bce + std_weight * std, {"bce": bce, "std": std}

    def sample(variables, key, images, num_samples):
        batch = images.shape[0]
        if dropout and num_samples > 1:
            # One tiled forward pass; every image sees the same masks, so batch mates never matter.
            keys = jnp.repeat(jax.random.split(key, num_samples), batch)
            outputs = net.apply(variables, jnp.tile(images, (num_samples, 1, 1, 1)), keys)
            outputs = outputs.reshape(num_samples, *images.shape[:3], 2)
        else:
            outputs = net.apply(variables, images)[None]
        mean, std = nn.sigmoid(outputs[..., :1]), nn.softplus(outputs[..., 1:])
        z = ndtri((jnp.arange(num_samples) + 0.5) / num_samples)
        return jnp.clip(mean + z[:, None, None, None, None] * std, 0.0, 1.0)

    return Localiser(init, loss, sample)
