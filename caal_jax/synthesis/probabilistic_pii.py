"""Probabilistic PII: many small blends, each drawn by several raters who disagree."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.errors import InputError
from caal_jax.synthesis import patches, poisson
from caal_jax.synthesis.anomaly import Anomaly, check_choice, check_pair


class Draws(NamedTuple):
    """All chance of one example: A anomalies at most, R raters each at most.

    num_raters: (A,), 0 for anomalies that are not there. side, target_corner: (A, 2) pixels, row
    and column.
    source_corner: (A, 1, 2), or (A, R, 2) with one source per rater.
    centre, half_axes: (A, R, 2) of each rater's mask in pixels of the patch. turn: (A, R, 2, 2),
    the rotation into the mask's own axes, or (A, 1, 2, 2) where nobody asks. strength: (A, R)
    factor of the source's gradients. Volumes have three axes in place of two.
    """

    num_raters: jax.Array
    side: jax.Array
    target_corner: jax.Array
    source_corner: jax.Array
    centre: jax.Array
    half_axes: jax.Array
    turn: jax.Array
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

    target, source: (H, W, C) float32 in [0, 1], or volumes (D, H, W, C), which get cuboid patches
        with masks round in all directions. foreground: the same with one channel, bool; centres are
        drawn there and labels are 0 outside (in the principled form; the reference form only
        masks labels). An empty foreground leaves the image as it is.
    form: "reference" keeps what the published code draws: sizes from the width alone and even,
        targets pushed to the top left, masks in whole pixels, integer strengths. "principled"
        draws patches inside the central core or the foreground, sizes along each axis, mask
        sizes with a spread in proportion, and clips the image to the target's range and the
        label to [0, 1]. Volumes have no reference form.
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
    if target.ndim == 4 and not principled:
        raise InputError(
            "form",
            found=f"'reference' for a volume {target.shape}",
            expected="pictures: the published code knows no volumes",
            remedy="Take form='principled', or pass slices.",
        )
    draws = draw(
        key,
        target.shape[:-1],
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
        block_shape=_block_shape(target.shape[:-1], form, side),
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
    axes = len(shape)
    max_anomalies, max_raters = num_anomalies[1], num_raters[1]
    each_rater = (max_anomalies, max_raters)
    num_turns = (max_raters if style == "elliptic" else 1, 1 if axes == 2 else 3)
    count, raters, sides, in_target, in_source, turn, factor, at_centre, at_width = (
        patches.draw_uniforms(
            key,
            (),
            (max_anomalies,),
            (max_anomalies, axes),
            (max_anomalies, axes),
            (max_anomalies, max_raters if source_per_rater else 1, axes),
            (max_anomalies, *num_turns),
            each_rater,
            (*each_rater, axes),
            (*each_rater, axes),
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
        turn = jnp.floor(turn * 360) / 360
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
        turn=rotation(turn),
        strength=factor.astype(jnp.float32),
    )


def blend(draws, target, source, *, style, weighting, std, block_shape, clip):
    """The example that `draws` describe, foreground aside; no chance in here.

    block_shape: static size of the largest patch along each axis. clip: to the target's range.
    """
    present = (draws.num_raters > 0).astype(jnp.float32)
    touching = draws.num_raters / jnp.maximum(jnp.sum(draws.num_raters), 1)  # share of all blends
    # What to add up over the anomalies: a function of their moments, and their weights.
    terms = [(_mean, present if weighting == "per_anomaly" else touching)]
    if std == "rater":
        terms.append((_variance, present))
    else:
        terms += [(_second_moment, touching), (_mean, touching)]
    change, *moments = _fold(draws, target, source, style, block_shape, *zip(*terms, strict=True))
    image = target + change
    if clip:
        image = patches.clip_to(image, target)
    label = jnp.max(jnp.abs(image - target), axis=-1, keepdims=True)
    if weighting == "per_blend":
        label = 10 * label
    variance = moments[0] if std == "rater" else moments[0] - moments[1] ** 2
    label_std = jnp.sqrt(jnp.maximum(jnp.max(variance, axis=-1, keepdims=True), 0.0))
    return Anomaly(image, jnp.clip(label, 0.0, 1.0) if clip else label, label_std)


def _fold(draws, target, source, style, block_shape, statistics, weights):
    """For each statistic its sum over the anomalies, weighted and at their places in the target.

    statistics, weights: as many functions of (mean, variance) as arrays (A,).
    An accelerator gets all patches at once, at the largest size and with as many raters as there
    can be. A processor takes one patch after the other through its cache, each in a block not much
    larger than itself and without the raters that are not there: a quarter of the arithmetic.
    """

    def with_room(image):
        """Room behind every pixel, so that blocks can start at the patches' corners."""
        return jnp.pad(image, (*((0, n) for n in block_shape), (0, 0)))

    def without_room(image):
        return image[tuple(slice(n) for n in target.shape)]

    def weigh(moments, weights):
        return [
            weight * statistic(*moments)
            for statistic, weight in zip(statistics, weights, strict=True)
        ]

    def all_at_once(draws, weights, target, source):
        target, source = with_room(target), with_room(source)

        def part(draws, weights):
            blocks = _cut_patch(draws, target, source, block_shape)
            return weigh(_moments(draws, *blocks, style, draws.strength.shape[0]), weights)

        parts = jax.vmap(part)(draws, weights)
        totals = [_add_up(part, draws.target_corner + 1, target) for part in parts]
        return list(map(without_room, totals))

    def add_one_by_one(example):
        draws, weights, *images = example
        target, source = map(with_room, images)
        sizes = [_block_sizes(n) for n in block_shape]

        def add(anomaly, totals):
            one, weight = jax.tree.map(lambda x: x[anomaly], (draws, weights))
            blocks = _cut_patch(one, target, source, block_shape)

            def in_block(shape):
                spare = [n - m for n, m in zip(block_shape, shape, strict=True)]
                moments = _moments(
                    one, *(_shorten(x, shape) for x in blocks), style, one.num_raters
                )
                spare = [*((0, n) for n in spare), (0, 0)]
                return [jnp.pad(part, spare) for part in weigh(moments, weight)]

            which = 0
            for side, limits in zip(one.side, sizes, strict=True):
                which = which * len(limits) + sum(side > limit for limit in limits[:-1])
            branches = [functools.partial(in_block, shape) for shape in itertools.product(*sizes)]
            corner = (*(one.target_corner + 1), 0)
            return [
                jax.lax.dynamic_update_slice(
                    total, part + jax.lax.dynamic_slice(total, corner, part.shape), corner
                )
                for total, part in zip(totals, jax.lax.switch(which, branches), strict=True)
            ]

        count = jnp.sum(draws.num_raters > 0)
        totals = jax.lax.fori_loop(0, count, add, [jnp.zeros_like(target) for _ in weights])
        return list(map(without_room, totals))

    def one_by_one(*examples):
        return jax.lax.map(add_one_by_one, examples)

    return jax.lax.platform_dependent(
        draws, weights, target, source, cpu=patches.by_batch(one_by_one), default=all_at_once
    )


def _cut_patch(draws, target, source, block_shape):
    """One anomaly's block of the target (P, C, Q) and those of its sources (1 or R, P, C, Q)."""

    def cut(image, corner):
        block = jax.lax.dynamic_slice(image, (*corner, 0), (*block_shape, image.shape[-1]))
        return poisson.to_block(block)

    new = jnp.stack([cut(source, corner) for corner in draws.source_corner])
    return cut(target, draws.target_corner), new


def _shorten(block, shape):
    """The first pixels of a block along each spatial axis."""
    *leading, last = map(slice, shape)
    return block[(..., *leading, slice(None), last)]


def _block_sizes(largest):
    """The sizes of block along one axis (static): the largest, and a smaller one if it is large."""
    return [largest] if largest < 24 else [2 + 2 * (largest - 2) // 3, largest]


def _moments(draws, old, new, style, num_raters):
    """Mean and variance of one anomaly's change over its raters: blocks (P - 2, Q - 2, C).

    draws: of one anomaly; old: the target's block (P, C, Q); new: the sources', (1 or R, P, C, Q).
    num_raters: how many to go through, at least as many as there are.
    """
    bases = [
        poisson.sine_basis(0, jnp.maximum(side - 2, 0), old.shape[axis] - 2)
        for side, axis in zip(draws.side, poisson.spatial(old), strict=True)
    ]

    def add(rater, state):
        total, mean, spread = state
        field = _field(draws, rater, old, new, style)
        off = poisson.solve(field, *bases) - mean
        present = rater < draws.num_raters
        count = (rater + 1).astype(jnp.float32)
        return (
            total + jnp.where(present, field, 0.0),
            mean + jnp.where(present, off / count, 0.0),
            spread + jnp.where(present, off**2 * (1 - 1 / count), 0.0),
        )

    start = (jnp.zeros_like(poisson.inner(old)),) * 3
    total, _, spread = jax.lax.fori_loop(0, num_raters, add, start)
    # The solve is linear, so the mean is also one solve of the mean field. Where nobody reads the
    # label's std, the compiler drops Welford's updates above and with them a solve for each rater.
    count = jnp.maximum(draws.num_raters, 1)
    mean = poisson.solve(total / count, *bases)
    return poisson.from_block(mean), poisson.from_block(spread / count)


def _mean(mean, variance):
    return mean


def _variance(mean, variance):
    return variance


def _second_moment(mean, variance):
    return variance + mean**2


def _field(draws, rater, old, new, style):
    """What to solve for one rater's change of the target.

    draws, old, new: as in `_part`. Returns the block without its rim.
    """

    def rate():
        source, turn = (x[rater if len(x) > 1 else 0] for x in (new, draws.turn))
        mask = _mask(draws.side, draws.centre[rater], draws.half_axes[rater], turn, old, style)
        return source * draws.strength[rater], jnp.broadcast_to(mask, old.shape)

    # Absent raters blend nothing. The branch has a second use: XLA:CPU would otherwise compute a
    # pixel's mask and source anew for each of its neighbours, at five times the cost.
    nothing = jnp.zeros(old.shape)
    source, mask = jax.lax.cond(rater < draws.num_raters, rate, lambda: (nothing, nothing))
    return poisson.clone_field(old, source, mask, mixed=True)


def _mask(side, centre, half_axes, turn, like, style):
    """One rater's mask (P, 1, Q) or (O, P, 1, Q), float32, 0 on the patch's rim and beyond.

    side, centre, half_axes: (axes,), in pixels of the block `like`; turn: (axes, axes).
    """
    index = patches.indices((*like.shape[:-2], 1, like.shape[-1]))
    index = [index[axis] for axis in poisson.spatial(like)]
    free = [(i > 0) & (i < n - 1) for i, n in zip(index, side, strict=True)]
    offset = [i - c for i, c in zip(index, centre, strict=True)]
    if style == "rectangular":
        free = [f & (x >= -h) & (x < h) for f, x, h in zip(free, offset, half_axes, strict=True)]
        return functools.reduce(jnp.logical_and, free).astype(jnp.float32)
    if style == "elliptic":
        turned = [sum(turn[k, j] * x for j, x in enumerate(offset)) for k in range(len(index))]
        inside = sum((x / h) ** 2 for x, h in zip(turned, half_axes, strict=True)) <= 1
        return functools.reduce(jnp.logical_and, [inside, *free]).astype(jnp.float32)
    beyond = (jnp.where(f, x**2, jnp.inf) for f, x in zip(free, offset, strict=True))
    return (sum(beyond) <= half_axes[0] ** 2).astype(jnp.float32)


def rotation(uniforms):
    """Numbers of [0, 1) (..., 1) to rotations of the plane, (..., 3) to those of space.

    All equally likely; in space by a random unit quaternion (Shoemake, Uniform random rotations,
    1992, doi:10.1016/B978-0-08-050755-2.50036-1).
    """
    if uniforms.shape[-1] == 1:
        angle = 2 * jnp.pi * uniforms[..., 0]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return _matrix([[cos, sin], [-sin, cos]])
    share, *angles = jnp.moveaxis(uniforms, -1, 0)
    first, second = (2 * jnp.pi * angle for angle in angles)
    near, far = jnp.sqrt(1 - share), jnp.sqrt(share)
    x, y = near * jnp.sin(first), near * jnp.cos(first)
    z, w = far * jnp.sin(second), far * jnp.cos(second)
    return _matrix(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _matrix(rows):
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


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
        np.array(limits).reshape((1,) * (sides.ndim - 1) + (-1,))
        for limits in zip(*(patches.core(n, core_fraction) for n in shape), strict=True)
    )
    return patches.pick_integer(uniforms, first, jnp.maximum(stop - sides, first) + 1)


def _add_up(blocks, corners, image):
    """Sums blocks (N, P, Q, C) that start at `corners` (N, 2) into zeros of the image's shape."""
    axes = tuple(range(blocks.ndim))
    dimensions = jax.lax.ScatterDimensionNumbers(axes[1:], (), axes[:-2])
    return jax.lax.scatter_add(jnp.zeros_like(image), corners, blocks, dimensions)
