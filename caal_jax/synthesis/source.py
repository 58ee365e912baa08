"""A source made more foreign before any task blends it in."""

import jax
import jax.numpy as jnp

from caal_jax.synthesis.anomaly import check_pair


def jitter_source(key, source, *, shift=0.2, log_gain=0.5, offset=0.3):
    """Flips, turns, shifts and re-scales a healthy image.

    Subjects that look alike leave little to find in each other's patches; this is what makes a
    patch from the same place strange. Each of both flips (and, for square images, the transpose)
    with probability 1/2; a circular shift of up to `shift` of each side; intensities times
    exp(N(0, log_gain^2)) around 1/2 plus N(0, offset^2), clipped to [0, 1].

    source: (H, W, C) float32 in [0, 1]; returns the same.
    After the colour jitter and free placement of CutPaste (arXiv:2104.04015) and the shifted,
    flipped sources of NSA (arXiv:2109.15222); the numbers are our own.
    """
    check_pair(source, source, None)
    height, width, _ = source.shape
    coin_key, shift_key, tone_key = jax.random.split(key, 3)
    turns = jax.random.bernoulli(coin_key, shape=(3,))
    most = jnp.array([int(shift * height), int(shift * width)])
    steps = jax.random.randint(shift_key, (2,), -most, most + 1)
    tone = jax.random.normal(tone_key, (2,))
    return place_source(source, turns, steps, jnp.exp(log_gain * tone[0]), offset * tone[1])


def place_source(source, turns, steps, gain, offset):
    """The arithmetic of `jitter_source`: flips and transpose (3,), then shift, gain and offset."""
    height, width, _ = source.shape
    row = (jnp.arange(height)[:, None] - steps[0]) % height
    column = (jnp.arange(width)[None, :] - steps[1]) % width
    if height == width:
        row, column = jnp.where(turns[2], column, row), jnp.where(turns[2], row, column)
    row = jnp.where(turns[0], height - 1 - row, row)
    column = jnp.where(turns[1], width - 1 - column, column)
    # One look-up for all four moves: each of them alone would pass over the image once more.
    return jnp.clip((source[row, column] - 0.5) * gain + 0.5 + offset, 0.0, 1.0)
