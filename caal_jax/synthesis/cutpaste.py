"""CutPaste: a piece of an image, its colours slightly changed, pasted where it does not belong."""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from caal_jax.errors import InputError
from caal_jax.synthesis import patches
from caal_jax.synthesis.anomaly import Anomaly, check_choice, check_pair

# Tone.order is an index into these permutations of brightness 0, contrast 1, saturation 2, hue 3.
ORDERS = tuple(itertools.permutations(range(4)))
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue
SCAR_ROWS = 256  # sizes of scars are in pixels of an image with so many rows


class Tone(NamedTuple):
    """Colour jitter: three factors around 1, a share of the hue circle, an index into ORDERS."""

    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    order: jax.Array


class Cut(NamedTuple):
    """A piece, where it is from and where it goes: (n,) pixels along each of n spatial axes.

    size: of the piece, 0 where nothing is cut. source_corner: its first pixel in the source.
    canvas, target_corner: size of the box around the turned piece, and its first pixel in the
    target. turn: (n, n) rotation of the piece, the unit matrix for none.
    """

    size: jax.Array
    source_corner: jax.Array
    canvas: jax.Array
    target_corner: jax.Array
    turn: jax.Array
    tone: Tone


def cutpaste(
    key,
    target,
    source,
    *,
    foreground=None,
    cut_from="target",
    area=(0.02, 0.15),
    aspect=(0.3, 3.3),
    jitter=0.1,
    tolerance=1 / 255,
    despeckle=None,
):
    """Pastes a rectangle of the image, or a cuboid of the volume, over another place of it.

    target, source: (H, W, C) or (D, H, W, C) float32 in [0, 1]. foreground: bool, their shape
        with one channel; the middles of both places are drawn there (anywhere that keeps the
        piece inside the image without one), and the label is 0 outside. An empty foreground
        leaves the image as it is.
    cut_from: "target", as published, or "source" for a piece of the other image.
    area: limits of the piece's share of the image.
    aspect: limits of width over height; below and above 1 are equally likely. The sides of a
        cuboid have two such ratios, in random order. Sides are cut to those of the image.
    jitter: strength of the colour jitter, at most 0.5: brightness, contrast and saturation by
        factors within 1 +- jitter, hue by up to that share of its circle, in random order.
        3 channels are taken as RGB; others have neither saturation nor hue. 0 turns it off.
    tolerance: the label is 1 where the mean change of the channels exceeds it.
    despeckle: None, or a "median" over 5 or a "closing" over 3 pixels a side, of the label.
    Returns Anomaly; image in [0, 1], label 0 or 1, label_std 0.
    Paper: Li et al., CutPaste, 2021, arXiv:2104.04015. Reference: pytorch-cutpaste and
    torchvision's colour jitter, and nnOOD for the sides of cuboids; the test restates them.
    """
    _check(target, source, foreground, cut_from, jitter, despeckle)
    if not 0 < aspect[0] <= 1 <= aspect[1]:
        raise InputError(
            "aspect",
            found=aspect,
            expected="one limit in (0, 1] and one of at least 1",
            remedy="Swap or correct the limits.",
        )
    shape = target.shape[:-1]
    cut = draw_piece(key, shape, foreground=foreground, area=area, aspect=aspect, jitter=jitter)
    return paste(
        cut,
        target,
        target if cut_from == "target" else source,
        foreground,
        block=_largest_piece(shape, area, aspect),
        turned=False,
        recoloured=jitter > 0,
        tolerance=tolerance,
        despeckle=despeckle,
    )


def cutpaste_scar(
    key,
    target,
    source,
    *,
    foreground=None,
    cut_from="target",
    width=(2, 16),
    length=(10, 25),
    max_angle=45,
    jitter=0.1,
    tolerance=1 / 255,
    despeckle=None,
):
    """Pastes a small, turned strip of the image, or a rod of the volume, over another place.

    width, length: limits in pixels of an image with 256 rows, in proportion for others. A rod
        has two widths and lies along any axis before its turn.
    max_angle: the strip is turned by up to so many degrees either way, a rod within each of the
        three coordinate planes. Intensities are interpolated linearly, the outline is sharp.
    All else is as in `cutpaste`. Turned strips that are wider than the image are cut off.
    Reference: pytorch-cutpaste with PIL's Image.rotate(expand=True), bilinear; the box is placed
    by its turned size and sizes are whole pixels. Rods are our own.
    """
    _check(target, source, foreground, cut_from, jitter, despeckle)
    shape = target.shape[:-1]
    cut = draw_scar(
        key,
        shape,
        foreground=foreground,
        width=width,
        length=length,
        max_angle=max_angle,
        jitter=jitter,
    )
    return paste(
        cut,
        target,
        target if cut_from == "target" else source,
        foreground,
        block=_largest_scar(shape, width, length),
        turned=True,
        recoloured=jitter > 0,
        tolerance=tolerance,
        despeckle=despeckle,
    )


def cutpaste_union(key, target, source, *, foreground=None, **options):
    """`cutpaste` or `cutpaste_scar`, equally likely, under one binary label.

    Arguments and result are theirs; options: those that both have.
    """
    coin_key, key = jax.random.split(key)
    _, plain, scar = cutpaste_3way(key, target, source, foreground=foreground, **options)
    coin = jax.random.bernoulli(coin_key)
    return jax.tree.map(lambda a, b: jnp.where(coin, a, b), plain, scar)


def cutpaste_3way(key, target, source, *, foreground=None, **options):
    """The paper's triplet of one image: as it is, after `cutpaste`, and after `cutpaste_scar`.

    Arguments as in `cutpaste_union`. Returns three Anomalies. The class of each is its place
    (0, 1, 2), for its image as a whole as well as for the pixels that its label marks.
    """
    plain_key, scar_key = jax.random.split(key)
    plain = cutpaste(plain_key, target, source, foreground=foreground, **options)
    scar = cutpaste_scar(scar_key, target, source, foreground=foreground, **options)
    empty = jnp.zeros_like(plain.label)
    return Anomaly(jnp.asarray(target), empty, empty), plain, scar


def draw_piece(key, shape, *, foreground, area, aspect, jitter):
    """The `Cut` of `cutpaste` for an image of spatial `shape`."""
    n = len(shape)
    share, ratios, shuffle, places, tone = patches.draw_uniforms(
        key, (), (n - 1,), (), (2, n), (5,)
    )
    volume = (area[0] + (area[1] - area[0]) * share) * math.prod(shape)
    # The lower half of [0, 1) becomes ratios below 1, the upper half those above.
    ratios = jnp.where(
        ratios < 0.5,
        aspect[0] + (1 - aspect[0]) * 2 * ratios,
        1 + (aspect[1] - 1) * (2 * ratios - 1),
    )
    ratios = jnp.pad(ratios, 1, constant_values=1.0)
    # Backwards, so that the one ratio of an image is width (last axis) over height.
    sides = volume ** (1 / n) * jnp.sqrt(ratios[1:] / ratios[:-1])[::-1]
    size = _whole(_in_random_order(shuffle, sides), shape)
    size, corners = _place(places, size, size, shape, foreground)
    return Cut(size, corners[0], size, corners[1], jnp.eye(n), _tone(tone, jitter))


def draw_scar(key, shape, *, foreground, width, length, max_angle, jitter):
    """The `Cut` of `cutpaste_scar` for an image of spatial `shape`."""
    n = len(shape)
    long, wide, shuffle, angles, places, tone = patches.draw_uniforms(
        key, (1,), (n - 1,), (), (n * (n - 1) // 2,), (2, n), (5,)
    )
    sides = jnp.concatenate(
        [length[0] + (length[1] - length[0]) * long, width[0] + (width[1] - width[0]) * wide]
    )
    size = _whole(_in_random_order(shuffle, shape[-2] / SCAR_ROWS * sides), shape)
    turn = _rotation(math.radians(max_angle) * (2 * angles - 1), n)
    reach = jnp.matmul(jnp.abs(turn), size / 2, precision="highest")
    canvas = (jnp.ceil(size / 2 + reach) - jnp.floor(size / 2 - reach)).astype(jnp.int32)
    size, corners = _place(places, size, canvas, shape, foreground)
    return Cut(size, corners[0], canvas, corners[1], turn, _tone(tone, jitter))


def _in_random_order(uniform, sides):
    """The sides of a volume shuffled; those of an image already have their axes."""
    if len(sides) == 2:
        return sides
    orders = np.array(list(itertools.permutations(range(len(sides)))))
    return sides[jnp.asarray(orders)[patches.pick_integer(uniform, 0, len(orders))]]


def _whole(sides, shape):
    return jnp.clip(jnp.round(sides).astype(jnp.int32), 1, np.array(shape))


def _rotation(angles, n):
    """Turns within each pair of axes, one after the other: (n (n - 1) / 2,) rad to (n, n)."""
    turn = jnp.eye(n)
    for angle, (a, b) in zip(angles, itertools.combinations(range(n), 2), strict=True):
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        plane = jnp.eye(n).at[a, a].set(cos).at[b, b].set(cos).at[a, b].set(-sin)
        turn = jnp.matmul(plane.at[b, a].set(sin), turn, precision="highest")
    return turn


def _place(uniforms, size, canvas, shape, foreground):
    """Corners of the piece in the source and of its canvas in the target, and the final size."""
    shape = np.array(shape)
    boxes = list(zip(uniforms, (size, canvas), strict=True))
    if foreground is None:
        return size, [patches.pick_integer(u, 0, _room(shape, box) + 1) for u, box in boxes]
    corners = [
        jnp.clip(patches.pick_pixel(u, foreground[..., 0]) - box // 2, 0, _room(shape, box))
        for u, box in boxes
    ]
    return jnp.where(jnp.any(foreground), size, 0), corners


def _room(shape, box):
    return jnp.maximum(shape - box, 0)


def _tone(uniforms, jitter):
    spread = jitter * (2 * uniforms[:4] - 1)
    order = patches.pick_integer(uniforms[4], 0, len(ORDERS))
    return Tone(*(1 + spread[:3]), spread[3], order)


def _largest_piece(shape, area, aspect):
    """Sides that no rectangle or cuboid exceeds (static)."""
    n = len(shape)
    stretch = max(aspect[1], 1 / aspect[0]) if n == 2 else aspect[1] / aspect[0]
    longest = math.ceil((area[1] * math.prod(shape)) ** (1 / n) * math.sqrt(stretch))
    return tuple(min(longest, side) for side in shape)


def _largest_scar(shape, width, length):
    """Sides that no scar exceeds, before or after its turn (static)."""
    diagonal = math.hypot(length[1], *[width[1]] * (len(shape) - 1))
    longest = math.ceil(shape[-2] / SCAR_ROWS * diagonal)
    # Sides and canvas are rounded to whole pixels, by three at most in all.
    return tuple(min(longest + 3, side) for side in shape)


def paste(cut, target, source, foreground, *, block, turned, recoloured, tolerance, despeckle):
    """The example that `cut` describes; no chance in here.

    block: static sides that hold the piece and its canvas. turned, recoloured: False where the
    turn and the tone of the cut are to be ignored.
    """
    shape = target.shape[:-1]
    start = jnp.clip(cut.source_corner, 0, np.array(shape) - np.array(block))
    corner = cut.source_corner - start
    piece = jax.lax.dynamic_slice(source, (*start, 0), (*block, source.shape[-1]))
    if recoloured:
        piece = recolour(piece, corner, cut.size, cut.tone)
    if turned:
        piece, covered = _turn(piece, corner, cut)
        inside = _put(covered, 0 * corner, cut.target_corner, shape) > 0
        new = _put(piece, 0 * corner, cut.target_corner, shape)
    else:
        inside = _within(_places(shape, cut.target_corner), cut.size)
        new = _put(piece, corner, cut.target_corner, shape)
    image = jnp.where(inside, new, target)
    # Read off the finished image, and channel by channel: XLA is slow at short sums.
    change = jnp.abs(image - target)
    change = sum(change[..., c : c + 1] for c in range(change.shape[-1])) / change.shape[-1]
    label = change > tolerance
    if despeckle is not None:
        label = despeckled(label, despeckle)
    if foreground is not None:
        label &= foreground
    label = label.astype(jnp.float32)
    return Anomaly(image, label, jnp.zeros_like(label))


def _places(shape, first):
    """Each pixel's distance from the pixel `first`, along each axis, to broadcast over all."""
    return [i - f for i, f in zip(patches.indices(shape), first, strict=True)]


def _within(places, size):
    """Where all places are from 0 to below size: (..., 1) bool."""
    inside = [(place >= 0) & (place < side) for place, side in zip(places, size, strict=True)]
    return functools.reduce(jnp.logical_and, inside)[..., None]


def _put(block, corner, target_corner, shape):
    """An array of `shape` with the block's pixel `corner` at `target_corner`, 0 around it."""
    # The padding is never stored: XLA fuses it with the slice, which is faster than a look-up.
    room = [(n, n) for n in shape]
    start = np.array(shape) + corner - target_corner
    padded = jnp.pad(block, [*room, (0, 0)])
    return jax.lax.dynamic_slice(padded, (*start, 0), (*shape, block.shape[-1]))


def _turn(piece, corner, cut):
    """The turned piece at the beginning of a block of the same size, and 1.0 where there is some.

    piece: a block (..., C) with the piece from `corner` on.
    """
    block = piece.shape[:-1]
    # From the middle of the canvas, turned back, to the piece's own corner; pixels are 1 wide.
    places = [
        place + 0.5 - side / 2
        for place, side in zip(patches.indices(block), cut.canvas, strict=True)
    ]
    places = [
        sum(factor * place for factor, place in zip(factors, places, strict=True)) + side / 2
        for factors, side in zip(cut.turn.T, cut.size, strict=True)
    ]
    pixels = [
        jnp.clip(place - 0.5, 0, jnp.maximum(side - 1, 0)) + first
        for place, side, first in zip(places, cut.size, corner, strict=True)
    ]
    sample = jax.vmap(lambda channel: map_coordinates(channel, pixels, 1, "nearest"), -1, -1)
    return sample(piece), _within(places, cut.size).astype(jnp.float32)


def recolour(block, corner, size, tone):
    """The colour jitter of `tone`, each step clipped to [0, 1].

    block: (..., C) float32 with a piece of `size` from pixel `corner` on; contrast is changed
    around the mean grey level of the piece. With other than 3 channels only brightness and
    contrast apply, to all channels alike.
    """
    channels = block.shape[-1]
    in_colour = channels == 3
    weights = GREY_WEIGHTS if in_colour else [1 / channels] * channels
    orders = [[op for op in order if in_colour or op < 2] for order in ORDERS]
    ops = jnp.asarray(orders)[tone.order]
    factors = jnp.stack([tone.brightness, tone.contrast, tone.saturation, tone.hue])
    # Products with one weight per row and column vectorise; a sum under a mask does not.
    shares = [
        ((place >= 0) & (place < side)).ravel() / jnp.maximum(side, 1)
        for place, side in zip(_places(block.shape[:-1], corner), size, strict=True)
    ]

    def step(k, planes):
        op, factor = ops[k], factors[ops[k]]
        grey = sum(weight * plane for weight, plane in zip(weights, planes, strict=True))
        mean = grey
        for share in shares:
            mean = jnp.tensordot(share, mean, 1, precision="highest")
        other = jnp.where(op == 2, grey, jnp.where(op == 1, mean, 0.0))
        blended = [jnp.clip(factor * p + (1 - factor) * other, 0.0, 1.0) for p in planes]
        if not in_colour:
            return blended
        turned = _turn_hue(planes, tone.hue)
        return [jnp.where(op == 3, t, b) for t, b in zip(turned, blended, strict=True)]

    # A loop keeps XLA from computing all steps anew wherever the result is used.
    planes = [block[..., c] for c in range(channels)]
    return jnp.stack(jax.lax.fori_loop(0, len(orders[0]), step, planes), -1)


def _turn_hue(planes, share):
    """Moves each colour by a share of the hue circle; largest and smallest channel stay."""
    red, green, blue = planes
    value = functools.reduce(jnp.maximum, planes)
    chroma = value - functools.reduce(jnp.minimum, planes)
    # In sixths of the circle, 0 red, 2 green, 4 blue.
    sixths = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    ) / jnp.where(chroma > 0, chroma, 1.0)
    # The remainder by hand: % does not vectorise.
    away = [sixths + 6 * share + n for n in (5, 3, 1)]
    away = [a - 6 * jnp.floor(a / 6) for a in away]
    return [value - chroma * jnp.clip(jnp.minimum(a, 4 - a), 0.0, 1.0) for a in away]


def despeckled(mask, method):
    """A median over 5 or a closing over 3 pixels a side; (..., 1) bool, unmarked all around."""
    n = mask.ndim - 1
    padded = jnp.pad(mask, [(2, 2)] * n + [(0, 0)])
    if method == "median":
        return _window(padded.astype(jnp.int32), 5, jnp.add) > 5**n // 2
    return _window(_window(padded, 3, jnp.logical_or), 3, jnp.logical_and)


def _window(values, side, reduce):
    """`reduce` over all windows of `side` pixels a side that lie inside."""
    for axis in range(values.ndim - 1):
        stop = values.shape[axis] - side + 1
        parts = [jax.lax.slice_in_dim(values, k, k + stop, axis=axis) for k in range(side)]
        values = functools.reduce(reduce, parts)
    return values


def _check(target, source, foreground, cut_from, jitter, despeckle):
    check_pair(target, source, foreground)
    check_choice("cut_from", cut_from, ("target", "source"))
    check_choice("despeckle", despeckle, (None, "median", "closing"))
    if not 0 <= jitter <= 0.5:
        raise InputError(
            "jitter",
            found=jitter,
            expected="a strength from 0 to 0.5",
            remedy="Lower it: half of the hue circle is all there is.",
        )
