"""The probabilistic U-Net: one latent vector per image says what the label might be."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from caal_jax.localisers.deterministic import spread_samples, tile
from caal_jax.localisers.heads import mean_and_std
from caal_jax.localisers.layers import crop, interpolate, pad_to_multiple
from caal_jax.localisers.localiser import Localiser
from caal_jax.localisers.phiseg import Encoder, Gaussian, Unit, divergence, features_of

LATENT_SIZE = 6


class Decoder(nn.Module):
    """From an encoder's maps back to its first level: interpolation, skip, three units each."""

    dtype: Any = None

    @nn.compact
    def __call__(self, maps):
        x = maps[-1]
        for skip in reversed(maps[:-1]):
            x = jnp.concatenate([interpolate(x), skip], -1)
            for _ in range(3):
                x = Unit(skip.shape[-1], dtype=self.dtype)(x)
        return x


class GlobalGaussian(nn.Module):
    """One `Normal` (B, 6) per image: means over all places of a linear mean and softplus std."""

    @nn.compact
    def __call__(self, x):
        normal = Gaussian(LATENT_SIZE)(x)
        return jax.tree.map(lambda a: a.mean(tuple(range(1, a.ndim - 1))), normal)


class Combine(nn.Module):
    """A map and a latent vector, repeated at every place, to outputs."""

    initial: tuple[float, ...]
    dtype: Any = None

    @nn.compact
    def __call__(self, x, z):
        features, spatial = x.shape[-1], x.ndim - 2
        z = jnp.broadcast_to(
            z.reshape(z.shape[0], *[1] * spatial, -1), (*x.shape[:-1], z.shape[-1])
        )
        x = jnp.concatenate([x, z.astype(x.dtype)], -1)
        for _ in range(3):
            x = Unit(features, 1, dtype=self.dtype)(x)
        bias = jnp.array(self.initial)
        head = nn.Conv(len(self.initial), (1,) * spatial, bias_init=lambda *_: bias)
        return head(x.astype(jnp.float32))


class ProbabilisticUNet(nn.Module):
    """The networks of the probabilistic U-Net, for images and volumes.

    width: channels of the first of `depth` levels. initial: what each output channel starts at,
    about. dtype: of the convolutions' and norms' results; parameters, latents and outputs are
    float32. Sizes are multiples of 2 ** (depth - 1).
    """

    width: int = 32
    depth: int = 7
    initial: tuple[float, ...] = mean_and_std().initial
    dtype: Any = None

    def setup(self):
        features = features_of(self.width, self.depth)
        self.encoder, self.decoder = Encoder(features, self.dtype), Decoder(self.dtype)
        self.prior_encoder = Encoder(features, self.dtype)
        self.posterior_encoder = Encoder(features, self.dtype)
        self.prior_normal, self.posterior_normal = GlobalGaussian(), GlobalGaussian()
        self.combine = Combine(self.initial, self.dtype)

    def __call__(self, images, label, noise):
        """Training: (outputs, posterior `Normal`, prior `Normal`), z drawn given image and label.

        images (B, ..., C), label (B, ..., 1), noise (B, 6) standard normal.
        """
        both = jnp.concatenate([images - 0.5, label - 0.5], -1)
        posterior = self.posterior_normal(self.posterior_encoder(both)[-1])
        maps, prior = self.encode(images)
        return self.draw(maps, posterior, noise), posterior, prior

    def encode(self, images):
        """The last map (B, ..., width) and the prior `Normal` of images."""
        prior = self.prior_normal(self.prior_encoder(images - 0.5)[-1])
        return self.decoder(self.encoder(images - 0.5)), prior

    def draw(self, maps, normal, noise):
        """Outputs (B, ..., K) for z = mean + std * noise."""
        return self.combine(maps, normal.mean + normal.std * noise)


def probabilistic_unet(*, width=32, depth=7, head=None, compute_dtype="float32"):
    """The probabilistic U-Net as a `Localiser` of images (H, W, C) or volumes (D, H, W, C).

    The form of PHiSeg's code (seven levels, six latent numbers, weight 1 of the divergence) but
    for group normalisation and the soft label. The loss is the cross-entropy (or what `head` says,
    default `mean_and_std()`) summed over pixels plus the divergence of posterior and prior, divided
    by the number of pixels. Any size: edge-padded to a multiple of 2 ** (depth - 1) and cropped
    back. One sample is that of the prior mean; more are draws, see also `spread_samples`.
    Paper: Kohl et al. 2018, arXiv 1806.05034. Reference: a PyTorch restatement of PHiSeg's code.
    """
    head = head or mean_and_std()
    net = ProbabilisticUNet(width, depth, head.initial, compute_dtype)

    def pad(x):
        return pad_to_multiple(x, (2 ** (depth - 1),) * (x.ndim - 2))

    def init(key, image):
        image = pad(image[None])
        return net.init(key, image, image[..., :1], jnp.zeros((1, LATENT_SIZE)))

    def loss(variables, key, batch):
        keys = key if key.ndim else jax.random.split(key, len(batch.image))
        noise = jax.vmap(lambda k: jax.random.normal(k, (LATENT_SIZE,)))(keys)
        outputs, q, p = net.apply(variables, pad(batch.image), pad(batch.label), noise)
        outputs = crop(outputs, batch.image.shape[1:-1])
        parts = jax.tree.map(jnp.mean, head.losses(outputs, batch))
        kl = divergence(q, p).mean() / batch.label[0].size
        return head.total(parts) + kl, {**parts, "kl": kl}

    def sample(variables, key, images, num_samples):
        batch, sizes = images.shape[0], images.shape[1:-1]
        maps, prior = net.apply(variables, pad(images), method="encode")
        noise = jnp.zeros((batch, LATENT_SIZE))
        if num_samples > 1:
            # Every image sees the same draws, so batch mates never matter.
            noise = jnp.repeat(jax.random.normal(key, (num_samples, LATENT_SIZE)), batch, 0)
            maps, prior = jax.tree.map(lambda a: tile(a, num_samples), (maps, prior))
        outputs = crop(net.apply(variables, maps, prior, noise, method="draw"), sizes)
        return spread_samples(
            head, outputs.reshape(num_samples, batch, *outputs.shape[1:]), num_samples
        )

    return Localiser(init, loss, sample)
