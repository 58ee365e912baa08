"""FPI with an irregular, soft-edged patch: no straight edge that a network could look for."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.synthesis import patches
from caal_jax.synthesis.anomaly import Anomaly, check_pair, check_picture

# Standard deviations of the outline's waves, two to five around it.
WAVES = np.array([[0.12], [0.10], [0.07], [0.05]], np.float32)


class Blob(NamedTuple):
    """An irregular ellipse.

    centre: (2,) pixel. radii: (2,) pixels. angle: of the first radius to the rows, radians.
    waves: (4, 2), cosine and sine parts of the outline's waves, relative to its radius.
    softness: width of the rim, relative to the radius.
    """

    centre: jax.Array
    radii: jax.Array
    angle: jax.Array
    waves: jax.Array
    softness: jax.Array


def fpi_blob(
    key,
    target,
    source,
    *,
    foreground=None,
    core_fraction=0.8,
    radius=(0.03, 0.25),
    softness=(0.02, 0.6),
    share=(0.05, 1.0),
    tolerance=1e-3,
):
    """Mixes a blob of `source` into `target` at the same place; the label is its local share.

    target, source: (H, W, C) float32 in [0, 1]. foreground: (H, W, 1) bool; the centre is one of
        its pixels and nothing outside it changes (anywhere in the central `core_fraction` of each
        axis, and everywhere, without one). An empty foreground leaves the image as it is.
    radius: limits of the first radius, log-uniform, as fractions of the shorter side; the second
        is up to twice as large or as small. softness: limits of the rim's width, as fractions of
        the radius. share: limits of the foreign share at the centre, uniform.
    tolerance: pixels where both images agree, rounded down to multiples of it, get label 0.
    Returns Anomaly; image float32 in [0, 1], label the share times the blob's weight, label_std 0.

    FPI (arXiv:2011.04197) with another outline: its squares can be found by their edges alone.
    Ours; there is no published reference.
    """
    check_pair(target, source, foreground)
    check_picture("target", target, "Use fpi for volumes.")
    shape = target.shape[:2]
    blob, share = draw(
        key,
        shape,
        foreground=foreground,
        core_fraction=core_fraction,
        radius=radius,
        softness=softness,
        share=share,
    )
    mix = share * weight(blob, shape)
    if foreground is not None:
        mix = jnp.where(foreground, mix, 0.0)
    label = jnp.where(patches.differs(target, source, tolerance), mix, 0.0)
    return Anomaly((1 - mix) * target + mix * source, label, jnp.zeros_like(label))


def draw(key, shape, *, foreground, core_fraction, radius, softness, share):
    """A `Blob` and the foreign share; in an empty foreground the blob's place means nothing."""
    where, size, ratio, angle, waves, soft, mix = patches.draw_uniforms(
        key, (2,), (), (), (), (*WAVES.shape[:1], 2), (), ()
    )
    centre, _ = patches.pick_centre(where, shape, foreground, core_fraction)
    first = min(shape) * jnp.exp(_between(size, *np.log(radius)))
    second = first * jnp.exp2(_between(ratio, -1, 1))
    blob = Blob(
        centre,
        jnp.stack([first, second]),
        jnp.pi * angle,
        WAVES * patches.pick_normal(waves),
        _between(soft, *softness),
    )
    return blob, _between(mix, *share)


def weight(blob, shape):
    """The blob's weight (H, W, 1): 1 inside, falling linearly to 0 at its outline."""
    row, column = (i - c for i, c in zip(patches.indices((*shape, 1)), blob.centre, strict=False))
    cosine, sine = jnp.cos(blob.angle), jnp.sin(blob.angle)
    first = (cosine * row + sine * column) / blob.radii[0]
    second = (cosine * column - sine * row) / blob.radii[1]
    length = jnp.sqrt(first**2 + second**2)
    # Cosine and sine of the angle around the centre and, as powers of a complex number, of its
    # multiples: no trigonometric function of a pixel.
    inverse = 1 / jnp.maximum(length, 1e-6)
    even, odd = unit = first * inverse, second * inverse
    outline = 1.0
    for even_part, odd_part in blob.waves:
        even, odd = even * unit[0] - odd * unit[1], even * unit[1] + odd * unit[0]
        outline += even_part * even + odd_part * odd
    distance = length * outline
    return jnp.clip((1 - distance) / blob.softness, 0.0, 1.0)


def _between(uniform, low, high):
    return low + (high - low) * uniform
