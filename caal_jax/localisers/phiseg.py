"""PHiSeg: a hierarchy of latent variables says what the label might be, coarse to fine."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from caal_jax.errors import InputError
from caal_jax.localisers.deterministic import spread_samples, tile
from caal_jax.localisers.heads import mean_and_std
from caal_jax.localisers.layers import (
    activate,
    convolve,
    crop,
    interpolate,
    mean_pool,
    pad_to_multiple,
    repeat,
)
from caal_jax.localisers.localiser import Localiser

LATENT_CHANNELS = 2
MIN_STD = 1e-6  # of a latent: keeps the divergence finite


class Normal(NamedTuple):
    """Independent normal variables; mean and std > 0 have one shape."""

    mean: jax.Array
    std: jax.Array


def divergence(q, p):
    """KL(q || p) of two `Normal`s in nats, >= 0, summed over all but the first axis: (B,)."""
    ratio = jnp.square(q.std / p.std)
    distance = jnp.square((q.mean - p.mean) / p.std)
    terms = 0.5 * (ratio + distance - 1 - jnp.log(ratio))
    return terms.sum(tuple(range(1, terms.ndim)))


def features_of(width, levels):
    """Channels of each resolution level: width times 1, 2, 4, 6, 6, ..."""
    return [width * (1, 2, 4, 6)[min(level, 3)] for level in range(levels)]


class Unit(nn.Module):
    """Convolution without bias, group norm, ReLU; PHiSeg's code has batch normalisation."""

    features: int
    size: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        window = (self.size,) * (x.ndim - 2)
        init = nn.initializers.he_normal()
        how = {"kernel_init": init, "dtype": self.dtype, "conv_general_dilated": convolve}
        return activate(nn.Conv(self.features, window, use_bias=False, **how)(x), self.dtype)


class Gaussian(nn.Module):
    """A `Normal` of each place of a map: a linear mean and a softplus std, both float32."""

    channels: int
    mean_size: int = 1

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32)
        spatial = x.ndim - 2
        mean = nn.Conv(self.channels, (self.mean_size,) * spatial)(x)
        return Normal(mean, nn.softplus(nn.Conv(self.channels, (1,) * spatial)(x)) + MIN_STD)


class Encoder(nn.Module):
    """Three units per level, mean pooling in between; returns the maps of all levels."""

    features: tuple[int, ...]
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        maps = []
        for level, features in enumerate(self.features):
            x = mean_pool(x) if level else x
            for _ in range(3):
                x = Unit(features, dtype=self.dtype)(x)
            maps.append(x)
        return maps


class Latents(nn.Module):
    """The latent variables given an encoder's maps, from coarse to fine, each given the last."""

    width: int
    levels: int
    dtype: Any = None

    @nn.compact
    def __call__(self, maps, noise=None, given=None):
        """maps of all levels; one of noise and given, per latent level from the finest.

        noise: standard normal draws (zeros for the means). given: values of the latents, to be
        conditioned on. Returns ([Normal], [values]), per latent level from the finest.
        """
        offset = len(maps) - self.levels
        normals, values = [None] * self.levels, [None] * self.levels
        for level in reversed(range(self.levels)):
            x = maps[level + offset]
            if level == self.levels - 1:
                normal = Gaussian(LATENT_CHANNELS, mean_size=3)(x)
            else:
                up = interpolate(values[level + 1]).astype(x.dtype)
                for _ in range(2):
                    up = Unit(LATENT_CHANNELS * self.width, dtype=self.dtype)(up)
                features = features_of(self.width, self.levels)[level]
                x = jnp.concatenate([x, up], -1)
                for _ in range(2):
                    x = Unit(features, dtype=self.dtype)(x)
                normal = Gaussian(LATENT_CHANNELS)(x)
            normals[level] = normal
            if given:
                values[level] = given[level]
            else:
                values[level] = normal.mean + normal.std * noise[level]
        return normals, values


class Likelihood(nn.Module):
    """Outputs of each latent level at full size, from the latents alone."""

    width: int
    depth: int
    initial: tuple[float, ...]
    dtype: Any = None

    @nn.compact
    def __call__(self, values):
        levels = len(values)
        offset, features = self.depth - levels, features_of(self.width, self.depth)

        def unit(x, size):
            return Unit(size, dtype=self.dtype)(x)

        outputs, x = [None] * levels, None
        for level in reversed(range(levels)):
            y = unit(unit(values[level], features[level]), features[level])
            for _ in range(offset):
                y = unit(interpolate(y), features[level])
            if x is not None:
                y = jnp.concatenate([y, unit(interpolate(x), features[level])], -1)
                y = unit(unit(y, features[level + offset]), features[level + offset])
            x = y
            # The coarsest level starts at the rate of anomalies; the finer ones add to it.
            start = jnp.array(self.initial) * (level == levels - 1)
            head = nn.Conv(
                len(self.initial), (1,) * (x.ndim - 2), bias_init=lambda *_, start=start: start
            )
            output = head(x.astype(jnp.float32))
            outputs[level] = repeat(output, (2**level,) * (x.ndim - 2))
        return outputs


class PHiSeg(nn.Module):
    """The networks of PHiSeg, for images and volumes.

    width: channels of the first of `depth` resolution levels. levels: of latents, at most depth.
    initial: what each output channel starts at, about. dtype: of the convolutions' and norms'
    results; parameters, latents and outputs are float32. Sizes are multiples of 2 ** (depth - 1).
    """

    width: int = 32
    depth: int = 7
    levels: int = 5
    initial: tuple[float, ...] = mean_and_std().initial
    dtype: Any = None

    def setup(self):
        features = features_of(self.width, self.depth)
        self.prior_encoder = Encoder(features, self.dtype)
        self.prior_latents = Latents(self.width, self.levels, self.dtype)
        self.posterior_encoder = Encoder(features, self.dtype)
        self.posterior_latents = Latents(self.width, self.levels, self.dtype)
        self.likelihood = Likelihood(self.width, self.depth, self.initial, self.dtype)

    def latent_shapes(self, sizes):
        """The shape of each latent for an image of these spatial sizes, finest first."""
        offset = self.depth - self.levels
        return [
            (*(size // 2 ** (level + offset) for size in sizes), LATENT_CHANNELS)
            for level in range(self.levels)
        ]

    def __call__(self, images, label, noise):
        """Training: latents are drawn given image and label.

        images (B, ..., C), label (B, ..., 1), noise as `latent_shapes` with B in front. Returns
        (outputs of each level, posterior `Normal`s, prior `Normal`s given the same latents).
        """
        both = jnp.concatenate([images - 0.5, label - 0.5], -1)
        posterior, values = self.posterior_latents(self.posterior_encoder(both), noise=noise)
        prior, _ = self.prior_latents(self.prior_encoder(images - 0.5), given=values)
        return self.likelihood(values), posterior, prior

    def encode(self, images):
        """What the prior needs to know of an image: a map per level."""
        return self.prior_encoder(images - 0.5)

    def draw(self, maps, noise):
        """Outputs of each level for latents drawn given the image alone."""
        _, values = self.prior_latents(maps, noise=noise)
        return self.likelihood(values)


def phiseg(*, width=32, depth=7, latent_levels=5, head=None, compute_dtype="float32"):
    """PHiSeg as a `Localiser` of images (H, W, C) or volumes (D, H, W, C).

    The published network and loss but for group normalisation and the soft label, which enters the
    posterior as it is and the cross-entropy as its target; both per pixel, by whatever `head` says
    (default `mean_and_std()`). The loss is the sum over levels of the residual cross-entropies
    plus that of 4 ** level (volumes: 8 ** level) times the divergence of posterior and prior, all
    divided by the number of pixels. Any size: edge-padded to a multiple of 2 ** (depth - 1) and
    cropped back. One sample is that of the prior means; more are draws, see also `spread_samples`.
    Raises `InputError` unless 1 <= latent_levels <= depth.
    Paper: Baumgartner et al. 2019, arXiv 1906.04045. Reference: a PyTorch restatement of its code.
    """
    if not 1 <= latent_levels <= depth:
        raise InputError(
            "config.latent_levels",
            found=latent_levels,
            expected=f"1 to {depth}, the resolution levels of config.depth",
            remedy="Set --config.latent_levels, or more levels by --config.depth.",
        )
    head = head or mean_and_std()
    net = PHiSeg(width, depth, latent_levels, head.initial, compute_dtype)

    def pad(x):
        return pad_to_multiple(x, (2 ** (depth - 1),) * (x.ndim - 2))

    def draw_noise(key, sizes):
        shapes = net.latent_shapes(sizes)
        keys = jax.random.split(key, len(shapes))
        return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]

    def init(key, image):
        image = pad(image[None])
        noise = [jnp.zeros((1, *shape)) for shape in net.latent_shapes(image.shape[1:-1])]
        return net.init(key, image, image[..., :1], noise)

    def loss(variables, key, batch):
        keys = key if key.ndim else jax.random.split(key, len(batch.image))
        image, sizes = pad(batch.image), batch.image.shape[1:-1]
        noise = jax.vmap(lambda k: draw_noise(k, image.shape[1:-1]))(keys)
        outputs, posterior, prior = net.apply(variables, image, pad(batch.label), noise)
        total, so_far = 0.0, 0.0
        for output in reversed(outputs):
            so_far = so_far + crop(output, sizes)
            parts = jax.tree.map(jnp.mean, head.losses(so_far, batch))
            total = total + head.total(parts)
        pixels = batch.label[0].size
        coarser = 2 ** len(sizes)
        divergences = [divergence(q, p).mean() for q, p in zip(posterior, prior, strict=True)]
        kl = sum(coarser**level * each for level, each in enumerate(divergences)) / pixels
        return total + kl, {**parts, "kl": kl}

    def sample(variables, key, images, num_samples):
        batch, sizes = images.shape[0], images.shape[1:-1]
        images = pad(images)
        maps = net.apply(variables, images, method="encode")
        noise = draw_noise(key, images.shape[1:-1])
        if num_samples == 1:
            noise = [jnp.zeros((batch, *each.shape)) for each in noise]
        else:
            # Every image sees the same draws, so batch mates never matter.
            draws = jax.vmap(lambda k: draw_noise(k, images.shape[1:-1]))
            noise = [jnp.repeat(n, batch, 0) for n in draws(jax.random.split(key, num_samples))]
            maps = [tile(each, num_samples) for each in maps]
        outputs = crop(sum(net.apply(variables, maps, noise, method="draw")), sizes)
        return spread_samples(
            head, outputs.reshape(num_samples, batch, *outputs.shape[1:]), num_samples
        )

    return Localiser(init, loss, sample)
