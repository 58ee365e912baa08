"""Probabilistic PII: many small blends, each drawn by several raters who disagree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.synthesis import patches, poisson
from caal_jax.synthesis.anomaly import Anomaly, check_choice, check_pair


class Draws(NamedTuple):
    """All chance of one example: A anomalies at most, R raters each at most.

    num_raters: (A,), 0 for anomalies that are not there. side, target_corner: (A, 2) pixels, row
    and column.
    source_corner: (A, 1, 2), or (A, R, 2) with one source per rater.
    centre, half_axes: (A, R, 2) of each rater's mask in pixels of the patch; angle: (A, R) rad.
    strength: (A, R) factor of the source's gradients.
    """

    num_raters: jax.Array
    side: jax.Array
    target_corner: jax.Array
    source_corner: jax.Array
    centre: jax.Array
    half_axes: jax.Array
    angle: jax.Array
    strength: jax.Array


def probabilistic_pii(
    key,
    target,
    source,
    *,
    foreground=None,
    form="principled",
    style="circular",
    weighting=None,
    std=None,
    core_fraction=0.8,
    side=(0.05, 0.2),
    num_anomalies=(10, 19),
    num_raters=(1, 9),
    strength=None,
    source_per_rater=False,
):
    """Blends small patches of `source` into `target`, each as several raters would.

    Each anomaly has a rectangular patch; every rater draws an own mask inside it and blends with
    mixed gradients (`poisson.blend_dst`), always into the clean target. The mean over the blends
    is the image, its distance from the target the label, the spread the label's std.

    target, source: (H, W, C) float32 in [0, 1]. foreground: (H, W, 1) bool; patch centres are
        drawn there and labels are 0 outside (in the principled form; the reference form only
        masks labels). An empty foreground leaves the image as it is.
    form: "reference" keeps what the published code draws: sizes from the width alone and even,
        targets pushed to the top left, masks in whole pixels, integer strengths. "principled"
        draws patches inside the central core or the foreground, sizes along each axis, mask
        sizes with a spread in proportion, and clips the image to the target's range and the
        label to [0, 1].
    style: "rectangular", "circular" or "elliptic" masks.
    weighting: "per_blend", the mean over all blends of all anomalies, label 10 |image - target|
        (default of the reference form); "per_anomaly", each anomaly at full weight, label
        |image - target| (default of the principled form).
    std: "reference", over all blends of all anomalies, which mostly tells how many of them touch
        a pixel; "rater", over the raters of an anomaly, summed in quadrature. Each form has its
        own by default.
    side: limits of the patch's full side, fractions of the axis. num_anomalies, num_raters:
        limits, both included. strength: limits of the factor on the source's gradients, whole
        numbers (10, 19) by default in the reference form, (0.7, 1.3), the same over their mean,
        in the principled one.
    source_per_rater: each rater takes a patch of its own from the source.
    Returns Anomaly; channels share draws, and label and label_std are those of the channel that
    changed most. Labels of the reference form may exceed 1, its images leave [0, 1].
    Paper: Probabilistic PII, 2023, arXiv:2303.13227. Reference: its published generator, with
    (row, column) order throughout and discs by distance; the test restates it as a loop.
    """
    check_pair(target, source, foreground)
    check_choice("form", form, ("principled", "reference"))
    check_choice("style", style, ("rectangular", "circular", "elliptic"))
    check_choice("weighting", weighting, (None, "per_blend", "per_anomaly"))
    check_choice("std", std, (None, "reference", "rater"))
    principled = form == "principled"
    draws = draw(
        key,
        target.shape[:2],
        foreground=foreground,
        form=form,
        style=style,
        core_fraction=core_fraction,
        side=side,
        num_anomalies=num_anomalies,
        num_raters=num_raters,
        strength=strength or ((0.7, 1.3) if principled else (10, 19)),
        source_per_rater=source_per_rater,
    )
    anomaly = blend(
        draws,
        target,
        source,
        style=style,
        weighting=weighting or ("per_anomaly" if principled else "per_blend"),
        std=std or ("rater" if principled else "reference"),
        block_shape=_block_shape(target.shape[:2], form, side),
        clip=principled,
    )
    if foreground is None:
        return anomaly
    image, label, label_std = anomaly
    return Anomaly(image, jnp.where(foreground, label, 0.0), jnp.where(foreground, label_std, 0.0))


def draw(
    key,
    shape,
    *,
    foreground,
    form,
    style,
    core_fraction,
    side,
    num_anomalies,
    num_raters,
    strength,
    source_per_rater,
):
    """Draws for an image of `shape` (H, W); the options are those of `probabilistic_pii`."""
    max_anomalies, max_raters = num_anomalies[1], num_raters[1]
    each_rater = (max_anomalies, max_raters)
    count, raters, sides, in_target, in_source, turn, factor, at_centre, at_width = (
        patches.draw_uniforms(
            key,
            (),
            (max_anomalies,),
            (max_anomalies, 2),
            (max_anomalies, 2),
            (max_anomalies, max_raters if source_per_rater else 1, 2),
            each_rater,
            each_rater,
            (*each_rater, 2),
            (*each_rater, 2),
        )
    )
    count = patches.pick_integer(count, num_anomalies[0], max_anomalies + 1)
    raters = patches.pick_integer(raters, num_raters[0], max_raters + 1)
    at_centre, at_width = patches.pick_normal(at_centre), patches.pick_normal(at_width)

    low, high = _side_limits(shape, form, side)
    sides = patches.pick_integer(sides, low[None], high[None] + 1)
    if form == "reference":
        sides = sides // 2 * 2
        rater_sides = sides[:, None].astype(jnp.float32)
        core = np.round(core_fraction * np.array(shape)).astype(int)[None]
        target_corner = patches.pick_integer(in_target, sides, core - sides)
        first, stop = np.array([patches.core(n, core_fraction) for n in shape]).T
        source_corner = patches.pick_integer(in_source, first[None, None], stop[None, None])
        source_corner -= sides[:, None] // 2
        centre = jnp.trunc(rater_sides / 2 * (1 + at_centre / 6))
        half_axes = jnp.trunc(rater_sides / 2 + at_width) // 2
        if style != "rectangular":  # discs are made from the width that is left inside the patch
            left = jnp.minimum(centre + half_axes, rater_sides) - jnp.maximum(centre - half_axes, 0)
            half_axes = jnp.maximum(left // 2, 0)
        angle = jnp.floor(turn * 360) * (jnp.pi / 180)
        factor = patches.pick_integer(factor, strength[0], strength[1] + 1)
    else:
        rater_sides = sides[:, None].astype(jnp.float32)
        target_corner = _corner_in_core(in_target, sides, shape, core_fraction)
        if foreground is not None:
            pick = jax.vmap(patches.pick_pixel, (0, None))
            target_corner = pick(in_target, foreground[..., 0]) - sides // 2
            count = jnp.where(jnp.any(foreground), count, 0)
        source_corner = _corner_in_core(in_source, sides[:, None], shape, core_fraction)
        centre = (rater_sides - 1) / 2 + rater_sides / 12 * at_centre
        half_axes = jnp.maximum(rater_sides / 4 * (1 + at_width / 6), 1)
        angle = jnp.pi * turn
        factor = strength[0] + (strength[1] - strength[0]) * factor
    if style == "circular":
        half_axes = jnp.broadcast_to(jnp.min(half_axes, -1, keepdims=True), half_axes.shape)
    room = np.array(shape)
    return Draws(
        num_raters=jnp.where(jnp.arange(max_anomalies) < count, raters, 0),
        side=sides,
        target_corner=jnp.clip(target_corner, 0, room[None] - sides),
        source_corner=jnp.clip(source_corner, 0, room[None, None] - sides[:, None]),
        centre=centre,
        half_axes=half_axes,
        angle=angle,
        strength=factor.astype(jnp.float32),
    )


def blend(draws, target, source, *, style, weighting, std, block_shape, clip):
    """The example that `draws` describe, foreground aside; no chance in here.

    block_shape: static rows and columns that hold the largest patch. clip: to the target's range.
    """
    block = (*block_shape, target.shape[2])
    # With room below and to the right of every pixel, blocks can start at the patches' corners.
    room = (*((0, n) for n in block_shape), (0, 0))
    target_blocks = _cut(jnp.pad(target, room, mode="edge"), draws.target_corner, block)
    source_blocks = jax.vmap(_cut, (None, 0, None))(
        jnp.pad(source, room, mode="edge"), draws.source_corner, block
    )
    mean, variance = jax.vmap(_rate, (0, 0, 0, None))(draws, target_blocks, source_blocks, style)

    def total(blocks, weights):  # (A, P - 2, C, Q - 2) -> (H, W, C)
        blocks = jax.vmap(poisson.from_block)(blocks * weights[:, None, None, None])
        return _add_up(blocks, draws.target_corner + 1, target)

    present = (draws.num_raters > 0).astype(jnp.float32)
    touching = draws.num_raters / jnp.maximum(jnp.sum(draws.num_raters), 1)  # share of all blends
    weights = present if weighting == "per_anomaly" else touching
    image = target + total(mean, weights)
    if clip:
        image = jnp.clip(image, jnp.min(target), jnp.max(target))
    label = jnp.max(jnp.abs(image - target), axis=-1, keepdims=True)
    if weighting == "per_blend":
        label = 10 * label
    if std == "rater":
        variance = total(variance, present)
    else:
        variance = total(variance + mean**2, touching) - total(mean, touching) ** 2
    label_std = jnp.sqrt(jnp.maximum(jnp.max(variance, axis=-1, keepdims=True), 0.0))
    return Anomaly(image, jnp.clip(label, 0.0, 1.0) if clip else label, label_std)


def _rate(draws, target, source, style):
    """One anomaly's change of the target: mean and variance over its raters.

    draws: of one anomaly; target: (P, C, Q); source: (R or 1, P, C, Q). Returns two
    (P - 2, C, Q - 2), the block without its rim.
    """
    num_raters = len(draws.strength)
    height, _, width = target.shape
    shape = (height, num_raters, *target.shape[1:])
    strength = draws.strength[None, :, None, None]
    fields = poisson.clone_field(
        *(
            jnp.broadcast_to(block, shape).reshape(height, -1, width)
            for block in (
                target[:, None],
                jnp.moveaxis(source, 0, 1) * strength,
                _masks(draws, (height, width), style),
            )
        ),
        mixed=True,
    )
    rows, columns = (
        poisson.sine_basis(0, jnp.maximum(side - 2, 0), size - 2)
        for side, size in zip(draws.side, (height, width), strict=True)
    )
    share = (jnp.arange(num_raters) < draws.num_raters) / jnp.maximum(draws.num_raters, 1)
    shape = (height - 2, num_raters, -1, width - 2)

    def mean_over_raters(blocks):  # written out: XLA:CPU does not vectorise a sum over this axis
        blocks = blocks.reshape(shape)
        return sum(blocks[:, r] * share[r] for r in range(num_raters))

    # The solve is linear: the mean over raters is one solve of the mean field. Only the variance
    # needs each rater, and where nobody reads the label's std the compiler drops that part.
    mean = poisson.solve(mean_over_raters(fields), rows, columns)
    each = poisson.solve(fields, rows, columns).reshape(shape)
    return mean, mean_over_raters((each - mean[:, None]) ** 2)


def _masks(draws, block_shape, style):
    """The raters' masks (P, R, 1, Q) float32, 0 on the patch's rim and beyond."""
    row = jnp.arange(block_shape[0])[:, None, None, None]
    column = jnp.arange(block_shape[1])[None, None, None, :]
    free = (row > 0) & (row < draws.side[0] - 1) & (column > 0) & (column < draws.side[1] - 1)
    down = row - draws.centre[None, :, 0, None, None]
    right = column - draws.centre[None, :, 1, None, None]
    half_height, half_width = (draws.half_axes[None, :, axis, None, None] for axis in (0, 1))
    if style == "rectangular":
        inside = (down >= -half_height) & (down < half_height)
        inside &= (right >= -half_width) & (right < half_width)
        return (inside & free).astype(jnp.float32)
    if style == "elliptic":
        cos, sin = (f(draws.angle)[None, :, None, None] for f in (jnp.cos, jnp.sin))
        down, right = down * cos + right * sin, right * cos - down * sin
    inside = (down * half_width) ** 2 + (right * half_height) ** 2 <= (
        half_height * half_width
    ) ** 2
    return (inside & free).astype(jnp.float32)


def _side_limits(shape, form, side):
    """Smallest and largest side of a patch along each axis, both included (static)."""
    lengths = np.array([shape[1], shape[1]] if form == "reference" else shape)
    low = np.round(side[0] * lengths).astype(int)
    if form == "principled":
        low = np.maximum(low, 5)  # a rim and three free pixels
    low = np.minimum(low, shape)
    return low, np.clip(np.round(side[1] * lengths).astype(int) - 1, low, shape)


def _block_shape(shape, form, side):
    return tuple(max(3, int(n)) for n in _side_limits(shape, form, side)[1])


def _corner_in_core(uniforms, sides, shape, core_fraction):
    """Corners that leave the patch inside the central core; uniforms, sides: (..., 2)."""
    first, stop = (
        np.array(limits).reshape((1,) * (sides.ndim - 1) + (2,))
        for limits in zip(*(patches.core(n, core_fraction) for n in shape), strict=True)
    )
    return patches.pick_integer(uniforms, first, jnp.maximum(stop - sides, first) + 1)


def _cut(image, corners, block):  # (H, W, C), (N, 2) -> (N, P, C, Q)
    def cut(corner):
        return poisson.to_block(jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), block))

    return jax.vmap(cut)(corners)


def _add_up(blocks, corners, image):
    """Sums blocks (N, P, Q, C) that start at `corners` (N, 2) into zeros of the image's shape."""
    height, width, channels = image.shape
    padded = jnp.zeros((height + blocks.shape[1], width + blocks.shape[2], channels))
    dimensions = jax.lax.ScatterDimensionNumbers((1, 2, 3), (), (0, 1))
    return jax.lax.scatter_add(padded, corners, blocks, dimensions)[:height, :width]
