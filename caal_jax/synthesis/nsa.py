"""Natural synthetic anomalies: pieces of a healthy image, resized, moved, and blended in."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.errors import InputError
from caal_jax.synthesis import patches, poisson
from caal_jax.synthesis.anomaly import Anomaly, check_choice, check_pair, check_picture

NUM_ELLIPSES = 5
NUM_TRIES = 64  # boxes and places drawn for each patch, of which the first right one is taken
NUM_PLACES = 4  # of the places that a box count does not rule out, so many are looked at closely
MIN_PIXELS = 50  # a clone of fewer pixels changes nothing that can be seen


class Draws(NamedTuple):
    """All chance of one example with A patches; places and sizes are (A, 2): row and column.

    present: (A,) bool. source_corner, source_size: the box that is cut out; size: what it is
    resized to; corner: where that goes. centre, half_axes: (A, 5, 2) of ellipses in pixels of the
    box; angle: (A, 5) rad. factor: () strength of the blend. mixed: () bool.
    """

    present: jax.Array
    source_corner: jax.Array
    source_size: jax.Array
    size: jax.Array
    corner: jax.Array
    centre: jax.Array
    half_axes: jax.Array
    angle: jax.Array
    factor: jax.Array
    mixed: jax.Array


def nsa(
    key,
    target,
    source,
    *,
    foreground=None,
    background=None,
    half_width=((0.03, 0.4), (0.03, 0.4)),
    gamma=(2, 0.03, 0.05),
    num_patches=3,
    resize=(0.7, 1.3),
    shift=True,
    outline="rectangle",
    min_object=0.7,
    min_overlap=0.7,
    blend="mixed",
    label="logistic-intensity",
    logistic=(127.5, 4 / 255),
    tolerance=1 / 255,
):
    """Cuts up to `num_patches` boxes out of `source` and blends them into `target` elsewhere.

    The first patch is always tried, each further one with probability 1/2; each is blended into
    the result so far. The defaults are those for chest X-rays; `nsa_preset` has all others. Pass
    the target as its own source to move pieces within one image.

    target, source: (H, W, C) float32 in [0, 1]. foreground: (H, W, 1) bool, the target's object;
        the label is 0 outside. An empty foreground leaves the image as it is.
    background: pairs (value, threshold); pixels whose mean over the channels is further than that
        from each of the values are the object, after a 7 x 7 majority, in either image. A box
        then holds more than `min_object` of object, and more than `min_overlap` of its object
        comes to lie on the target's. Where both are background nothing is labelled. Without such
        pairs all of the source is object.
    half_width: limits of the box's half height and half width, fractions of the axes. A resized
        box has these same limits for its full sides, as published.
    gamma: (shape, scale, offset) of the half-widths' distribution, fractions of the axes, the
        shape a whole number; None for whole numbers of pixels, all equally likely.
    resize: limits of a factor N(1, 0.5^2) on the box's sides; None keeps the size.
    shift: False puts the patch where it came from, whatever is there.
    outline: "rectangle", or "ellipses", the union of five of them in the box.
    blend: "normal" or "mixed" clone (`poisson.seamless_clone`), "mix" for either by chance,
        "swap" for a paste, or "uniform" for a weighted mean.
    label: "binary", 1 where the mean change of the channels exceeds `tolerance`, after a 5 x 5
        majority; "continuous", this times the factor U(0.05, 0.95) with which clones and means are
        then weakened; "intensity", the change there, after a median over a disk of radius 5;
        "logistic-intensity", 1 / (1 + exp(-k (intensity - x0))) with `logistic` = (k, x0).
    Returns Anomaly; image in [0, 1], label in [0, 1], label_std 0.
    Paper: Schlueter et al., Natural Synthetic Anomalies, 2022, arXiv:2109.15222. Reference: its
    code, on grey levels of 0 to 255, with OpenCV's clone; benchmarks/nsa_peer.py restates it.
    Ours keeps the labels of earlier patches where later ones overlap them, tries 64 boxes and as
    many places at once where it loops 200 times, finds medians in 255 steps, and does not round
    the image to grey levels.
    """
    check_pair(target, source, foreground)
    check_picture("target", target, "Use fpi, pii, probabilistic_pii or cutpaste for volumes.")
    source = jnp.asarray(source)  # indexed with traced positions below
    check_choice("outline", outline, ("rectangle", "ellipses"))
    check_choice("blend", blend, ("normal", "mixed", "mix", "swap", "uniform"))
    check_choice("label", label, ("binary", "continuous", "intensity", "logistic-intensity"))
    target_object, source_object = objects(target, source, foreground, background)
    draws = draw(
        key,
        target.shape[:2],
        target_object,
        source_object,
        half_width=half_width,
        gamma=gamma,
        num_patches=num_patches,
        resize=resize,
        shift=shift,
        min_object=min_object,
        min_overlap=min_overlap,
    )
    image, mask = paste(
        draws._replace(factor=draws.factor if label == "continuous" else jnp.ones(())),
        target,
        source,
        target_object,
        source_object,
        block_shape=_block_shape(target.shape[:2], half_width, resize),
        outline=outline,
        blend=blend,
    )
    strength = grade(target, image, mask, label, draws.factor, logistic, tolerance)
    if foreground is not None:
        strength = jnp.where(foreground, strength, 0.0)
    return Anomaly(image, strength, jnp.zeros_like(strength))


def objects(target, source, foreground, background):
    """The object masks (H, W) bool of target and source, or None twice if all is object."""
    if background is None and foreground is None:
        return None, None
    masks = jnp.ones((2, *target.shape[:2]), bool)
    if background is not None:
        # One after the other in a loop, whose results are stored: where they are only described,
        # the compiler counts neighbours again for each pixel that is ever looked up.
        masks = jax.lax.map(lambda mean: _differs(mean, background), _means(target, source))
    if foreground is not None:
        masks = masks.at[0].set(masks[0] & foreground[..., 0])
    return tuple(masks)


def _means(*images):
    return jnp.stack([jnp.mean(image, axis=-1) for image in images])


def _differs(mean, background):
    values, thresholds = np.array(background).reshape(-1, 2).T
    far = [jnp.abs(mean - v) > t for v, t in zip(values, thresholds, strict=True)]
    return majority(functools.reduce(jnp.logical_and, far), 7)


def draw(
    key,
    shape,
    target_object,
    source_object,
    *,
    half_width,
    gamma,
    num_patches,
    resize,
    shift,
    min_object,
    min_overlap,
):
    """Draws for an image of `shape` (H, W); the options are those of `nsa`."""
    each = (num_patches,)
    coins, sizes, scale, at_source, at_target, centre, half_axes, turn, factor, mixed = (
        patches.draw_uniforms(
            key,
            each,
            (*each, 2, _num_exponentials(gamma)),
            each,
            (*each, 1 if source_object is None else NUM_TRIES, 2),
            (*each, 1 if target_object is None else NUM_TRIES, 2),
            (*each, NUM_ELLIPSES, 2),
            (*each, NUM_ELLIPSES, 2),
            (*each, NUM_ELLIPSES),
            (),
            (),
        )
    )
    limits = _limits(shape, half_width)
    half = _half_sides(sizes, shape, limits, gamma)
    present = (coins < 0.5) | (np.arange(num_patches) == 0)
    lengths, low = np.array(shape), limits[:, 0]

    middles = patches.pick_integer(at_source, low[None, None], (lengths - low)[None, None])
    middle = middles[:, 0]
    if source_object is not None:
        middle, good = jax.vmap(_pick_box, (0, 0, None, None, None))(
            middles, half, _above(source_object), lengths, min_object
        )
        present &= good
    source_corner, stop = _box(middle, half, lengths)
    source_size = stop - source_corner
    size = source_size
    if resize is not None:
        scale = jnp.clip(1 + 0.5 * patches.pick_normal(scale), *resize)
        size = resized(source_size, scale, limits)

    # Patches stay off the border, if they leave room for it.
    last = jnp.maximum(lengths[None] - 2 * (size // 2) - 2, 1)
    corners = patches.pick_integer(at_target, 1, last[:, None] + 1)
    corners = jnp.minimum(corners, (lengths[None] - size)[:, None])
    corner = corners[:, 0]
    if not shift:
        corner = jnp.clip(source_corner + (source_size - size) // 2, 0, lengths[None] - size)
        if target_object is not None:
            present &= jnp.any(target_object)
    elif target_object is not None:
        block_shape = _block_shape(shape, half_width, resize)
        room = jnp.pad(target_object, [(0, n) for n in block_shape])
        above, shares = _above(target_object), (min_object, min_overlap)
        corner, good = jax.vmap(
            lambda corners, box: _pick_place(
                corners, box, source_object, above, room, block_shape, shares
            )
        )(corners, _Box(source_corner, source_size, size))
        present &= good
    # Ellipses are at least as thick as the smallest box and at most a quarter of their own.
    thickest = jnp.maximum(half // 2, low[None] + 1)
    return Draws(
        present=present,
        source_corner=source_corner,
        source_size=source_size,
        size=size,
        corner=corner,
        centre=centre * source_size[:, None],
        half_axes=patches.pick_integer(half_axes, low[None, None], thickest[:, None]).astype(
            jnp.float32
        ),
        angle=jnp.pi * turn,
        factor=0.05 + 0.9 * factor,
        mixed=mixed < 0.5,
    )


def resized(size, scale, limits):
    """Sides (A, 2) times a factor (A,), within the limits, the aspect ratio kept if possible."""
    (low, high), (narrow, wide) = limits
    height, width = size[:, 0], size[:, 1]
    new_height = jnp.clip(scale * height, low, high)
    new_width = jnp.clip(jnp.floor(new_height / height * width), narrow, wide)
    new_height = jnp.clip(jnp.floor(new_width / width * height), low, high)
    return jnp.stack([new_height, new_width], axis=1).astype(jnp.int32)


def _num_exponentials(gamma):
    if gamma is None:
        return 1
    if gamma[0] != int(gamma[0]) or gamma[0] < 1:
        raise InputError(
            "gamma",
            found=f"shape {gamma[0]}",
            expected="a whole number, 1 or more",
            remedy="Draw sizes with another shape; the published ones use 2.",
        )
    return int(gamma[0])


def _limits(shape, half_width):
    """Smallest and largest half-width in pixels along each axis (2, 2) (static)."""
    lengths = np.array(shape)[:, None]
    limits = np.maximum(np.round(np.array(half_width) * lengths).astype(int), 1)
    return np.minimum(limits, (lengths - 1) // 2)


def _half_sides(uniforms, shape, limits, gamma):
    """Numbers of [0, 1) (A, 2, K) to half sides in pixels (A, 2)."""
    low, high = limits[:, 0][None], limits[:, 1][None]
    if gamma is None:
        return patches.pick_integer(uniforms[..., 0], low, np.maximum(high, low + 1))
    # A gamma variable whose shape is a whole number is a sum of so many exponential ones.
    exponentials = -jnp.log1p(-uniforms)
    _, scale, offset = gamma
    half = (offset + scale * jnp.sum(exponentials, axis=-1)) * np.array(shape, np.float32)[None]
    return jnp.floor(jnp.clip(half, low, high)).astype(jnp.int32)


def _block_shape(shape, half_width, resize):
    """Rows and columns that hold the largest patch (static)."""
    most = _limits(shape, half_width)[:, 1] * (1 if resize is not None else 2)
    return tuple(max(3, int(n)) for n in most)


def _above(mask):
    """(H + 1, W): the number of True pixels of each column above each row, the last one too."""
    # Faster than cumsum on a CPU.
    sums = jax.lax.associative_scan(jnp.add, mask.astype(jnp.int16), axis=0)
    return jnp.pad(sums, ((1, 0), (0, 0)))


def _count(above, first, stop):
    """True pixels in the boxes from `first` to `stop` (N, 2), not included."""
    (top, left), (bottom, right) = first.T, stop.T
    columns = above.at[bottom].get(mode="promise_in_bounds")
    columns -= above.at[top].get(mode="promise_in_bounds")
    k = jnp.arange(above.shape[1])[None]
    inside = (k >= left[:, None]) & (k < right[:, None])
    return jnp.sum(jnp.where(inside, columns, 0), axis=1, dtype=jnp.int32)


def _pick_box(middles, half, above, lengths, min_object):
    """The first of `middles` (N, 2) whose box holds enough object, and whether one does."""
    first, stop = _box(middles, half[None], lengths)
    good = _count(above, first, stop) > min_object * jnp.prod(stop - first, axis=1)
    return middles[jnp.argmax(good)], jnp.any(good)


def _box(middle, half, lengths):
    """First and last + 1 row and column of a box, cut off at the border; (N, 2) each."""
    return jnp.maximum(middle - half, 0), jnp.minimum(middle + half, lengths[None])


def _pick_place(corners, patch, source_object, above, room, block_shape, shares):
    """The first of `corners` (N, 2) where enough of the patch's object meets the target's.

    Returns it, and whether there is one. above: of the target's object; room: this object,
    with a block of False beyond its ends; shares: min_object and min_overlap.
    """
    min_object, min_overlap = shares
    rows, columns = _axes(patch, (0, 0), block_shape)
    piece = _resample(source_object[..., None].astype(jnp.float32), rows, columns) >= 0.5
    piece = (piece & _outer(rows.inside, columns.inside))[..., 0]
    own = jnp.sum(piece)
    # Most places that are wrong have too little of the target's object in the whole box.
    likely = _count(above, corners, corners + patch.size[None]) > min_overlap * own
    rank = jnp.cumsum(likely)
    nth = jnp.sum(rank[None, :] <= jnp.arange(NUM_PLACES)[:, None], axis=1)
    corners = corners[jnp.minimum(nth, len(corners) - 1)]
    met = jax.vmap(lambda corner: jnp.sum(piece & jax.lax.dynamic_slice(room, corner, block_shape)))
    right = (met(corners) > min_overlap * own) & (nth < len(rank))
    enough = own > min_object * patch.size[0] * patch.size[1]
    return corners[jnp.argmax(right)], jnp.any(right) & enough


class _Box(NamedTuple):
    """Those parts of `Draws` that say how a patch is resized."""

    source_corner: jax.Array
    source_size: jax.Array
    size: jax.Array


class _Axis(NamedTuple):
    """Where each of the n pixels of a block lies in the source, along one axis.

    inside: (n,) bool, the patch; free: the same without its first and last pixel. at: (n,) in
    pixels of the box. low, high: (n,) neighbours in the source; share: (n,) of the second.
    """

    inside: jax.Array
    free: jax.Array
    at: jax.Array
    low: jax.Array
    high: jax.Array
    share: jax.Array


def _axes(patch, offset, block_shape):
    """Rows and columns of a block in which the patch begins at `offset` (2,)."""
    return [
        _axis(*numbers)
        for numbers in zip(
            patch.source_corner, patch.source_size, patch.size, offset, block_shape, strict=True
        )
    ]


def _axis(first, source_size, size, offset, n):
    pixel = jnp.arange(n) - offset
    at = (pixel + 0.5) * (source_size / size) - 0.5
    clipped = jnp.clip(at, 0, source_size - 1)
    low = jnp.floor(clipped).astype(jnp.int32)
    high = jnp.minimum(low + 1, source_size - 1)
    return _Axis(
        inside=(pixel >= 0) & (pixel < size),
        free=(pixel >= 1) & (pixel < size - 1),
        at=at,
        low=first + low,
        high=first + high,
        share=clipped - low,
    )


def _outer(rows, columns):
    return (rows[:, None] & columns[None, :])[..., None]


def _resample(image, rows, columns):
    """Bilinear: (H, W, C) to a block (P, Q, C)."""
    share = rows.share[:, None, None]
    lines = (1 - share) * image[rows.low] + share * image[rows.high]
    share = columns.share[None, :, None]
    return (1 - share) * lines[:, columns.low] + share * lines[:, columns.high]


class _Piece(NamedTuple):
    """A patch ready to be blended in, in a block (P, Q, ...) that starts at `start` in the target.

    foreign: (P, Q, C), the resized source. changed: (P, Q, 1) bool, where it counts. solved: the
    same, where a clone takes its gradients.
    """

    present: jax.Array
    start: jax.Array
    foreign: jax.Array
    changed: jax.Array
    solved: jax.Array


def paste(draws, target, source, target_object, source_object, *, block_shape, outline, blend):
    """The image that `draws` describe and where it was to change, (H, W, 1) bool; no chance."""
    whole = draws.factor, draws.mixed
    pieces = jax.vmap(
        lambda patch: _cut(
            patch, source, target_object, source_object, target.shape[:2], block_shape, outline
        )
    )(draws._replace(factor=None, mixed=None))
    if blend in ("normal", "mixed", "mix"):
        enough = jnp.sum(pieces.solved, axis=(1, 2, 3)) >= MIN_PIXELS
        pieces = pieces._replace(present=pieces.present & enough)

    def add(state, piece):
        image, mask = state
        start = (*piece.start, 0)
        old = jax.lax.dynamic_slice(image, start, piece.foreign.shape)
        new = jnp.where(piece.present, _blend(old, piece, *whole, blend), old)
        image = jax.lax.dynamic_update_slice(image, new, start)
        before = jax.lax.dynamic_slice(mask, start, piece.changed.shape)
        changed = before | (piece.present & piece.changed)
        return (image, jax.lax.dynamic_update_slice(mask, changed, start)), None

    return jax.lax.scan(add, (target, jnp.zeros((*target.shape[:2], 1), bool)), pieces)[0]


def _cut(patch, source, target_object, source_object, shape, block_shape, outline):
    start = jnp.minimum(patch.corner, np.array(shape) - np.array(block_shape))
    rows, columns = _axes(patch, patch.corner - start, block_shape)
    box = _outer(rows.inside, columns.inside)
    changed = box
    if outline == "ellipses":
        changed &= _ellipses(patch, rows.at, columns.at)
    solved = changed
    if target_object is not None:
        own = jax.lax.dynamic_slice(target_object, start, block_shape)[..., None]
        foreign = _resample(source_object[..., None].astype(jnp.float32), rows, columns) >= 0.5
        changed &= own | foreign
        # The background both share goes into the clone with the rest: a hole in its gradients
        # would show.
        solved = changed | (box & ~own & ~foreign)
    solved &= _outer(rows.free, columns.free)
    return _Piece(patch.present, start, _resample(source, rows, columns), changed, solved)


def _ellipses(patch, down, right):
    """The union of a patch's ellipses at rows (P,) and columns (Q,) of its box, (P, Q, 1) bool."""
    down = down[:, None, None] - patch.centre[None, None, :, 0]
    right = right[None, :, None] - patch.centre[None, None, :, 1]
    cos, sin = (f(patch.angle)[None, None] for f in (jnp.cos, jnp.sin))
    half = patch.half_axes[None, None]
    along, across = down * cos + right * sin, right * cos - down * sin
    inside = (along / half[..., 0]) ** 2 + (across / half[..., 1]) ** 2 <= 1
    return jnp.any(inside, axis=-1, keepdims=True)


def _blend(old, piece, factor, mixed, blend):
    if blend in ("swap", "uniform"):
        factor = 1.0 if blend == "swap" else factor
        return jnp.where(piece.changed, (1 - factor) * old + factor * piece.foreign, old)
    weight = piece.solved * factor
    clones = [
        poisson.seamless_clone(old, piece.foreign, weight, mixed=kind == "mixed")
        for kind in ("mixed", "normal")
        if blend in (kind, "mix")
    ]
    return clones[0] if len(clones) == 1 else jnp.where(mixed, *clones)


def grade(target, image, mask, label, factor, logistic, tolerance):
    """The label (H, W, 1) of the change from `target` to `image` in `mask`; options of `nsa`."""
    change = jnp.mean(jnp.abs(image - target), axis=-1)
    changed = majority(mask[..., 0] & (change > tolerance), 5)
    if label == "binary":
        graded = changed.astype(jnp.float32)
    elif label == "continuous":
        graded = changed * factor
    else:
        graded = jnp.where(changed, change, 0.0)
        if label == "logistic-intensity":
            # Before the median, not after: a rising curve does not disturb the order, and the
            # steps of the median then are steps of the label.
            steepness, middle = logistic
            graded = jax.nn.sigmoid(steepness * (graded - middle))
        graded = median_disk(graded)
        if label == "logistic-intensity":
            graded = jnp.where(changed, graded, 0.0)
    return graded[..., None]


def majority(mask, size):
    """Where most of the size x size pixels (size odd) around are True; (H, W) bool, edges repeated.

    Reference: scipy.ndimage.median_filter and cv2.medianBlur of the mask.
    """
    count = jnp.pad(mask.astype(jnp.int8), size // 2, mode="edge")
    for axis in (0, 1):
        n = mask.shape[axis]
        count = sum(jax.lax.slice_in_dim(count, k, k + n, axis=axis) for k in range(size))
    return count > size**2 // 2


def median_disk(image, *, radius=5):
    """The median over a disk, of an image (H, W) in [0, 1], edges repeated, in 255 equal steps.

    Bits of the answer are found one after the other, by counting the neighbours below. In 8-bit
    numbers this is far faster than sorting, and the published medians are of grey levels, too.
    radius: at most 6, a disk of no more pixels than an 8-bit number counts. Reference:
    scipy.ndimage.median_filter with skimage.morphology.disk.
    """
    down, right = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = np.argwhere(down**2 + right**2 <= radius**2)
    levels = (jnp.round(image * 255) - 128).astype(jnp.int8)
    padded = jnp.pad(levels, radius, mode="edge")

    def refine(bit, least):
        guess = least + jnp.left_shift(1, 7 - bit).astype(jnp.int8)
        below = [
            (jax.lax.slice(padded, start, start + np.array(image.shape)) < guess).astype(jnp.int8)
            for start in disk
        ]
        # Added up in pairs: one long chain of sums would wait for each of its links.
        while len(below) > 1:
            below = [sum(below[k : k + 2]) for k in range(0, len(below), 2)]
        return jnp.where(below[0] <= len(disk) // 2, guess, least)

    median = jax.lax.fori_loop(0, 8, refine, jnp.full_like(levels, -128))
    return (median.astype(jnp.float32) + 128) / 255


def calibrate_logistic(key, images, *, foregrounds=None, num_samples=500, **options):
    """Steepness k and middle x0 of the logistic label, from what patches change in healthy images.

    The label is then 0.1 for no change and 0.99 for the 40th percentile of all changes found.

    images: (N, H, W, C) float32 in [0, 1], N at least 2, no two alike: each sample takes two of
        them. foregrounds: (N, H, W, 1) bool or None. options: those of `nsa` but for its label.
    Returns (k, x0) for `logistic`.
    Reference: nnOOD's NSA task, the automatic variant of the published constants.
    """
    if len(images) < 2:
        raise InputError(
            "images",
            found=f"{len(images)} image",
            expected="two or more healthy images",
            remedy="Calibrate on a larger part of the training set.",
        )
    pick_key, key = jax.random.split(key)
    pair = np.asarray(jax.random.uniform(pick_key, (2, num_samples)))
    targets = np.minimum((pair[0] * len(images)).astype(int), len(images) - 1)
    steps = np.minimum(1 + (pair[1] * (len(images) - 1)).astype(int), len(images) - 1)
    sources = (targets + steps) % len(images)

    @jax.jit
    def intensity(key, target, source, foreground):
        return nsa(
            key, target, source, foreground=foreground, **options | {"label": "intensity"}
        ).label

    changes = []
    for k, t, s in zip(jax.random.split(key, num_samples), targets, sources, strict=True):
        foreground = None if foregrounds is None else foregrounds[t]
        label = np.asarray(intensity(k, images[t], images[s], foreground))
        changes.append(label[label > 0])
    changes = np.concatenate(changes)
    if not len(changes):
        raise InputError(
            "images",
            found=f"no change in {num_samples} samples",
            expected="healthy images that differ, with an object in them",
            remedy="Check foreground and background, or lower min_object and min_overlap.",
        )
    steepness = float(np.log(99 * 9) / np.percentile(changes, 40))
    return steepness, float(np.log(9)) / steepness
