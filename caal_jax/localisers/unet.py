"""A U-Net that is cheap where CPUs and accelerators are slow, with a mean and a std output."""

import math

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


def depth_to_space(x):
    """(B, H, W, 4C) -> (B, 2H, 2W, C), the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


def drop_channels(x, rate, keys):
    """Zeroes whole channels per example and scales the rest (spatial dropout, Tompson et al. 2015).

    x: (B, H, W, C); keys: (B,).
    """
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, (1, 1, x.shape[-1])))
    return jnp.where(draw(keys), x / (1.0 - rate), 0.0)


def local_contrast(images):
    """The difference of every pixel from the mean of its 3 x 3 neighbours, edges repeated."""
    mean = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    for window in ((1, 3, 1, 1), (1, 1, 3, 1)):
        mean = jax.lax.reduce_window(mean, 0.0, jax.lax.add, window, (1, 1, 1, 1), "valid") / 3
    return images - mean


def activate(x):
    """Group normalisation and ReLU: up to eight groups, of four channels or more."""
    groups = math.gcd(x.shape[-1], max(1, min(8, x.shape[-1] // 4)))
    return nn.relu(nn.GroupNorm(num_groups=groups)(x))


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) of pre-activation residual blocks (He et al. 2016).

    width: channels of the first level; each of the `depth` levels adds half of that.
    dropout: rate of spatial dropout before the second convolution of each block.
    stem: 2 folds 2 x 2 pixels into channels first and unfolds them for the last layers (a quarter
        of the work); 1 works at full resolution throughout.
    Besides the image it sees each pixel's difference from its neighbours, the fine texture. Skips
    are added. Any H, W: the input is edge-padded to a multiple of the total stride and cropped
    back.
    """

    width: int = 24
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
        images = jnp.concatenate([(images - 0.3) / 0.3, local_contrast(images) / 0.1], -1)
        features = [self.width * (level + 2) // 2 for level in range(self.depth)]
        block = 0

        def residual(x):
            nonlocal block
            y = nn.Conv(x.shape[-1], (3, 3), use_bias=False)(activate(x))
            if self.dropout and keys is not None:
                block_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, block)
                y = drop_channels(y, self.dropout, block_keys)
            block += 1
            return x + nn.Conv(x.shape[-1], (3, 3), use_bias=False)(activate(y))

        x = space_to_depth(images) if self.stem == 2 else images
        x = nn.Conv(features[0], (3, 3), use_bias=False)(x)
        skips = []
        for level, size in enumerate(features):
            if level:
                x = nn.Conv(size, (1, 1), use_bias=False)(space_to_depth(x))
            x = residual(x)
            skips.append(x)
        for level in reversed(range(self.depth - 1)):
            # Narrowing before doubling does the 1x1 convolution on a quarter of the pixels.
            x = double(nn.Conv(features[level], (1, 1))(activate(x)))
            x = residual(x + skips[level])
        x = activate(x)
        if self.stem == 2:
            last = max(4, self.width // 3)
            x = depth_to_space(nn.Conv(4 * last, (1, 1))(x))
            x = nn.relu(nn.Conv(last, (3, 3))(jnp.concatenate([nn.relu(x), images], -1)))
        bias = jnp.array([jnp.log(INITIAL_PROBABILITY / (1 - INITIAL_PROBABILITY)), -3.0])
        head = nn.Conv(2, (1, 1), kernel_init=nn.initializers.zeros, bias_init=lambda *_: bias)
        return head(x)[:, :height, :width].astype(jnp.float32)


def unet(*, width=24, depth=4, dropout=0.0, stem=2, std_weight=1.0):
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
