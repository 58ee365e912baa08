"""A source made more foreign before any task blends it in."""

import jax.numpy as jnp

from caal_jax.synthesis import patches
from caal_jax.synthesis.anomaly import check_pair, check_picture


def jitter_source(key, source, *, shift=0.25, zoom=(0.3, 4.0), log_gain=0.5, offset=0.3):
    """Flips, turns, zooms, shifts and re-scales a healthy image.

    Subjects that look alike leave little to find in each other's patches; this is what makes a
    patch from the same place strange. A flip with probability 1/2, a turn by any angle, a zoom
    log-uniform in `zoom`, a shift of up to `shift` of each side; intensities times
    exp(N(0, (u log_gain)^2)) around 1/2 plus N(0, (u offset)^2), clipped to [0, 1], where u is
    uniform in [0, 1]: many patches keep nearly the tissue's own intensities, or anything that
    differs by less than the usual jitter would pass as healthy.

    source: (H, W, C) float32 in [0, 1]; returns the same.
    After the colour jitter and free placement of CutPaste (arXiv:2104.04015) and the resized,
    shifted sources of NSA (arXiv:2109.15222); the numbers are our own.
    """
    check_pair(source, source, None)
    check_picture("source", source, "Jitter the slices of a volume, with jax.vmap.")
    flip, turn, size, steps, strength, tone = patches.draw_uniforms(key, (), (), (), (2,), (), (2,))
    low, high = jnp.log(jnp.float32(zoom[0])), jnp.log(jnp.float32(zoom[1]))
    reach = jnp.array([int(shift * n) for n in source.shape[:2]])
    tone = strength * patches.pick_normal(tone)
    return place_source(
        source,
        flip < 0.5,
        2 * jnp.pi * turn,
        jnp.exp(low + (high - low) * size),
        patches.pick_integer(steps, -reach, reach + 1),
        jnp.exp(log_gain * tone[0]),
        offset * tone[1],
    )


def place_source(source, flip, angle, zoom, steps, gain, offset):
    """The arithmetic of `jitter_source`, nearest pixels, mirrored beyond the border.

    The image is flipped along rows, turned by `angle` (radians) and enlarged by `zoom` about its
    middle, then moved by `steps` pixels (2,); intensities become (x - 1/2) gain + 1/2 + offset.
    """
    height, width, _ = source.shape
    row = jnp.arange(height)[:, None] - steps[0] - (height - 1) / 2
    column = jnp.arange(width)[None, :] - steps[1] - (width - 1) / 2
    cosine, sine = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    row, column = cosine * row - sine * column, sine * row + cosine * column
    row = _nearest(jnp.where(flip, -row, row) + (height - 1) / 2, height)
    column = _nearest(column + (width - 1) / 2, width)
    # One look-up for all the moves: each of them alone would pass over the image once more.
    return jnp.clip((jnp.asarray(source)[row, column] - 0.5) * gain + 0.5 + offset, 0.0, 1.0)


def _nearest(position, length):
    """The pixel nearest to a position; beyond the border the image is mirrored, edges repeated."""
    index = jnp.floor(position + 0.5).astype(jnp.int32) % (2 * length)
    return jnp.minimum(index, 2 * length - 1 - index)
