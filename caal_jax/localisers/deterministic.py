"""Any network that maps an image to one output is a localiser by its head."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from caal_jax.errors import InputError
from caal_jax.localisers.localiser import Localiser


def deterministic(net, head, *, dropout=0.0):
    """A `Localiser` of a Flax module and the `Head` that gives its outputs a meaning.

    net: called with images (B, ..., C) and, for dropout, keys (B,); returns (B, ..., K) float32.
    dropout: the net's rate. The loss is the mean over pixels of the head's. Samples: see
    `spread_samples`; where dropout is on, each is on masks of its own. Raises `InputError` for a
    rate outside [0, 1).
    """
    if not 0 <= dropout < 1:
        raise InputError(
            "config.dropout",
            found=dropout,
            expected="a rate in [0, 1)",
            remedy="Set --config.dropout=0.2, or 0.0 for none.",
        )

    def init(key, image):
        return net.init(key, image[None])

    def loss(variables, key, batch):
        keys = key if key.ndim else jax.random.split(key, len(batch.image))
        outputs = net.apply(variables, batch.image, keys)
        parts = jax.tree.map(jnp.mean, head.losses(outputs, batch))
        return head.total(parts), parts

    def sample(variables, key, images, num_samples):
        if dropout and num_samples > 1:
            # One tiled forward pass; every image sees the same masks, so batch mates never matter.
            keys = jnp.repeat(jax.random.split(key, num_samples), images.shape[0])
            outputs = net.apply(variables, tile(images, num_samples), keys)
            outputs = outputs.reshape(num_samples, *images.shape[:-1], -1)
        else:
            outputs = net.apply(variables, images)[None]
        return spread_samples(head, outputs, num_samples)

    return Localiser(init, loss, sample)


def tile(x, num_samples):
    """(B, ...) -> (num_samples * B, ...), whole batches one after the other."""
    return jnp.tile(x, (num_samples,) + (1,) * (x.ndim - 1))


def spread_samples(head, outputs, num_samples):
    """Outputs (1 or S, B, ..., K) -> probabilities (S, B, ..., 1) that also show the head's std.

    Sample s is mean + z_s * std, with z_s the S normal quantiles at (s + 1/2) / S, scaled to a
    variance of 1; the mean itself if S is 1. No step is longer than the way from the mean to the
    nearer of 0 and 1: shortened on both sides alike, the samples keep their mean, while their
    variance is std^2 only where none is too long (S = 2: std <= mean <= 1 - std).
    """
    mean, std = head.predict(outputs)
    z = ndtri((jnp.arange(num_samples) + 0.5) / num_samples)
    if num_samples > 1:
        z = z / jnp.sqrt(jnp.mean(z**2))
    room = jnp.minimum(mean, 1 - mean)
    return mean + jnp.clip(z.reshape(-1, *[1] * (mean.ndim - 1)) * std, -room, room)
