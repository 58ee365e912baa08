"""Synthesis tasks and blends against other code: python benchmarks/synthesis.py [--gpu]

Milliseconds per example, the best of several rounds in which all take turns, on the same images
and the same processor cores (--cores, one by default). Below each task stands what its outputs
alone cost, its floor: a copied image and an empty label and std. The peers follow the published
generators: FPI in NumPy; PII as one SciPy sparse solve, assembled pixel by pixel as published and,
once more, with array operations; P-PII as one sine-transform blend per rater and copy of the image;
NSA and CutPaste with OpenCV, NumPy and PIL (`nsa_peer.py`, `cutpaste_peer.py`). The sine-transform
blend restates pie-torch's `blend_dst_numpy` with SciPy and without torch, which makes it the faster
peer. NumPy peers that touch the patch alone are our own, to see what plain code could do.

--gpu prints examples per second on the accelerator instead, without peers.
"""

import argparse
import functools
import os
import platform
import sys

PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--cores", type=int, default=1)
PARSER.add_argument("--size", type=int, default=256)
PARSER.add_argument("--batch", type=int, help="16, or 128 with --gpu")
PARSER.add_argument("--rounds", type=int, default=4)
PARSER.add_argument("--only", default="", help="rows whose name contains this")
PARSER.add_argument("--no_peers", action="store_true", help="measure the package alone")
PARSER.add_argument("--gpu", action="store_true", help="examples per second, no peers")
ARGS = PARSER.parse_args()
BATCH = ARGS.batch or (128 if ARGS.gpu else 16)
if not ARGS.gpu and hasattr(os, "sched_setaffinity"):  # before any library counts the cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ARGS.cores])

import cutpaste_peer  # noqa: E402
import cv2  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import nsa_peer  # noqa: E402
import numpy as np  # noqa: E402
import PIL  # noqa: E402
import scipy  # noqa: E402
from scipy import fft, ndimage, sparse  # noqa: E402
from timing import alternate  # noqa: E402

from caal_jax.preprocess import equalize_foreground, foreground  # noqa: E402
from caal_jax.synthesis import (  # noqa: E402
    cutpaste,
    cutpaste_scar,
    fpi,
    nsa,
    pii,
    poisson,
    probabilistic_pii,
)

VERSIONS = {
    "Python": platform.python_version(),
    "jax": jax.__version__,
    "NumPy": np.__version__,
    "SciPy": scipy.__version__,
    "OpenCV": cv2.__version__,
    "Pillow": PIL.__version__,
}


def draw_box(rng, size):
    half = rng.integers(round(0.05 * size), round(0.2 * size))
    centre = rng.integers(round(0.1 * size), round(0.9 * size), 2)
    low, high = np.maximum(centre - half, 1), np.minimum(centre + half, size - 1)
    return slice(low[0], high[0]), slice(low[1], high[1])


def published_fpi(rng, targets, sources):
    """As published: whole slices of a pair of volumes; each pair of slices makes two examples."""
    num, size = targets.shape[:2]
    half = rng.integers(round(0.05 * size), round(0.2 * size), num)
    centre = rng.integers(round(0.1 * size), round(0.9 * size), (num, 2))
    own = np.zeros_like(targets)  # with an offset, so that shares of 0 mark their box too
    for k, share in enumerate(rng.uniform(0.05, 0.95, num)):
        low, high = ((centre[k] + step).clip(0, size) for step in (-half[k], half[k]))
        own[k, low[0] : high[0], low[1] : high[1]] = share + 1e-5
    box = np.ceil(own).clip(0, 1)
    own -= 1e-5 * box
    foreign, outside = box - own, 1 - box
    twins = (
        outside * targets + (own * targets + foreign * sources),
        outside * sources + (foreign * targets + own * sources),
    )
    grey_steps = (1e-3 * np.floor(box * images / 1e-3) for images in (targets, sources))
    return twins, foreign * np.not_equal(*grey_steps)


def numpy_fpi(rng, target, source):
    """The least work that NumPy can do: the box alone."""
    box, share = draw_box(rng, len(target)), rng.uniform(0.05, 0.95)
    image, label = target.copy(), np.zeros_like(target)
    image[box] = (1 - share) * target[box] + share * source[box]
    label[box] = share * (np.floor(target[box] / 1e-3) != np.floor(source[box] / 1e-3))
    return image, label


def pixelwise_pii(rng, target, source):
    """The sparse system entered pixel by pixel."""
    box, share = draw_box(rng, len(target)), rng.uniform(0.05, 0.95)
    pixels = [
        (i, j) for i in range(box[0].start, box[0].stop) for j in range(box[1].start, box[1].stop)
    ]
    number = {pixel: k for k, pixel in enumerate(pixels)}
    matrix, right = sparse.lil_array((len(pixels), len(pixels))), np.zeros(len(pixels))
    for k, (i, j) in enumerate(pixels):
        matrix[k, k] = 4
        for q in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            own = (1 - share) * (target[i, j] - target[q])
            foreign = share * (source[i, j] - source[q])
            right[k] += own if abs(own) > abs(foreign) else foreign
            if q in number:
                matrix[k, number[q]] = -1
            else:
                right[k] += target[q]
    image = target.copy()
    image[box].flat = sparse.linalg.spsolve(matrix.tocsc(), right)
    image = image.clip(target.min(), target.max())
    return image, share * (np.floor(image / 1e-3) != np.floor(target / 1e-3))


def scipy_pii(rng, target, source):
    box, share = draw_box(rng, len(target)), rng.uniform(0.05, 0.95)
    inside = np.zeros(target.shape, bool)
    inside[box] = True
    number = np.cumsum(inside).reshape(target.shape) - 1
    count = inside.sum()
    right, matrix = np.zeros(count), sparse.diags_array(np.full(count, 4.0))
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        own, foreign = (x - np.roll(x, step, (0, 1)) for x in (target, source))
        own, foreign = (1 - share) * own[inside], share * foreign[inside]
        right += np.where(np.abs(own) > np.abs(foreign), own, foreign)
        neighbour_inside = np.roll(inside, step, (0, 1))[inside]
        right += np.where(neighbour_inside, 0, np.roll(target, step, (0, 1))[inside])
        rows = np.flatnonzero(neighbour_inside)
        columns = np.roll(number, step, (0, 1))[inside][rows]
        matrix = matrix - sparse.coo_array((np.ones(len(rows)), (rows, columns)), (count, count))
    image = target.copy()
    image[box].flat = sparse.linalg.spsolve(matrix.tocsc(), right)
    image = image.clip(target.min(), target.max())
    return image, share * (np.floor(image / 1e-3) != np.floor(target / 1e-3))


def scipy_blend(target, source, mask):
    changes = []
    for axis in (0, 1):
        own, foreign = np.diff(target, axis=axis), np.diff(source, axis=axis)
        guide = np.where(np.abs(own) >= np.abs(foreign), own, foreign)
        weight = mask[:-1] if axis == 0 else mask[:, :-1]
        changes.append(weight * (guide - own))
    field = np.diff(changes[0][:, 1:-1], axis=0) + np.diff(changes[1][1:-1], axis=1)
    eigen = [4 * np.sin(np.pi * np.arange(1, n + 1) / (2 * n + 2)) ** 2 for n in field.shape]
    spectrum = -fft.dstn(field, 1) / (eigen[0][:, None] + eigen[1])
    out = target.copy()
    out[1:-1, 1:-1] += fft.idstn(spectrum, 1)
    return out


def scipy_ppii(rng, target, source):
    size, blends = len(target), []
    for _ in range(rng.integers(10, 20)):
        height, width = rng.integers(round(0.05 * size), round(0.2 * size), 2) // 2 * 2
        room = [round(0.8 * size) - height, round(0.8 * size) - width]
        (y, x), (t, left) = (rng.integers(round(0.1 * size), room) for _ in range(2))
        patch = source[y : y + height, x : x + width]
        row, column = np.mgrid[:height, :width]
        for _ in range(rng.integers(1, 10)):
            centre = rng.normal([height / 2, width / 2], [height / 12, width / 12])
            radius = rng.normal(min(height, width) / 4, 0.5)
            mask = (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius**2
            mask = np.pad(mask[1:-1, 1:-1], 1)
            copy = target.copy()
            part = np.s_[t : t + height, left : left + width]
            copy[part] = scipy_blend(target[part], rng.integers(10, 20) * patch, mask)
            blends.append(copy)
    blends = np.stack(blends)
    return blends.mean(0), 10 * np.abs(blends.mean(0) - target), blends.std(0)


def equalised(task):
    def run(key, target, source):
        body = foreground(target)
        target = equalize_foreground(target, body)
        source = equalize_foreground(source, foreground(source))
        return task(key, target, source, foreground=body)

    return run


def in_foreground(key, target, source):
    return probabilistic_pii(key, target, source, foreground=foreground(target))


def grey_levels(image):
    return np.round(255 * image).astype(np.uint8)


def opencv_nsa(rng, *images, **options):
    return nsa_peer.nsa(rng, *(grey_levels(x)[..., None] for x in images), **options)


def each(peer):
    """A peer of one pair for stacks of them."""
    return lambda rng, targets, sources: [
        peer(rng, *pair) for pair in zip(targets, sources, strict=True)
    ]


def fpi_twins(rng, targets, sources):
    half = len(targets) // 2
    return published_fpi(rng, targets[:half], sources[:half])


@jax.jit
def floor(targets):
    return jnp.copy(targets), jnp.zeros_like(targets), jnp.zeros_like(targets)


CALLS = 3
FLOOR = "floor: copy image, zero label, zero std"
TASKS = {  # name: task, peers of (rng, targets, sources)
    "cutpaste": (
        cutpaste,
        {
            "PIL": each(lambda rng, x, _: cutpaste_peer.cutpaste(rng, grey_levels(x))),
            "NumPy, piece only": each(lambda rng, x, _: cutpaste_peer.cutpaste_numpy(rng, x)),
        },
    ),
    "cutpaste_scar": (
        cutpaste_scar,
        {"PIL": each(lambda rng, x, _: cutpaste_peer.cutpaste_scar(rng, grey_levels(x)))},
    ),
    "fpi": (fpi, {"NumPy, as published": fpi_twins, "NumPy, box only": each(numpy_fpi)}),
    "pii": (pii, {"SciPy, pixel by pixel": each(pixelwise_pii), "SciPy, arrays": each(scipy_pii)}),
    "nsa": (nsa, {"OpenCV": each(opencv_nsa)}),
    "nsa, binary label": (
        functools.partial(nsa, label="binary"),
        {"OpenCV": each(functools.partial(opencv_nsa, label="binary"))},
    ),
    "probabilistic_pii": (probabilistic_pii, {"SciPy DST per rater": each(scipy_ppii)}),
    "probabilistic_pii, reference form": (
        functools.partial(probabilistic_pii, form="reference"),
        {"SciPy DST per rater": each(scipy_ppii)},
    ),
    "probabilistic_pii, no label_std": (lambda *args: probabilistic_pii(*args)[:2], {}),
    "probabilistic_pii in a foreground": (in_foreground, {}),
    "equalisation of both + fpi": (equalised(fpi), {}),
    "equalisation of both + probabilistic_pii": (equalised(probabilistic_pii), {}),
}


def smooth_images(count, size):
    noise = np.random.default_rng(0).random((count, size, size))
    noise = ndimage.gaussian_filter(noise, (0, 3, 3))
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def report(name, ours, others):
    """One row for the package, one for each of the others: milliseconds per example, ratio."""
    if ARGS.only not in name:
        return
    # Each is called a few times in a row: the first call after another's pays for cold caches and
    # for memory that the other gave back to the system.
    calls = [run for run in (ours, *others.values()) for _ in range(CALLS)]
    times = np.reshape(alternate(*calls, rounds=ARGS.rounds), (-1, CALLS)).min(axis=1)
    mine, *theirs = 1e3 * times / BATCH
    if ARGS.gpu:
        print(f"{name:46} {1e3 / mine:12,.0f} examples/s", flush=True)
        return
    print(f"{name:46} {mine:9.3f}")
    for other, time in zip(others, theirs, strict=True):
        digits = 1 if time > mine else 2
        print(f"    {other:42} {time:9.3f}   x{time / mine:.{digits}f}")
    sys.stdout.flush()


def tasks():
    rng = np.random.default_rng(0)
    images = smooth_images(2 * BATCH, ARGS.size)
    targets, sources = images[:BATCH], images[BATCH:]
    on_device = jnp.asarray(targets)[..., None], jnp.asarray(sources)[..., None]
    keys = jax.random.split(jax.random.key(0), BATCH)
    least = functools.partial(floor, on_device[0])
    report(FLOOR, least, {})
    for name, (task, peers) in TASKS.items():
        compiled = jax.jit(jax.vmap(task))
        runs = {peer: functools.partial(run, rng, targets, sources) for peer, run in peers.items()}
        alone = {} if ARGS.gpu else {FLOOR: least}
        report(name, functools.partial(compiled, keys, *on_device), alone | wanted(runs))


def clones():
    """Mixed clones with a full mask: one channel, and the three that OpenCV insists on."""
    for size in (64, 96, 128):
        images = smooth_images(6 * BATCH, size).reshape(2, BATCH, 3, size, size)
        targets, sources = np.ascontiguousarray(np.moveaxis(images, 2, -1))
        levels = grey_levels(targets), grey_levels(sources)
        mask, full = np.ones((size, size), np.float32), np.full((size, size), 255, np.uint8)
        centre = (1 + (size - 2) // 2,) * 2

        def opencv(levels=levels, full=full, centre=centre):
            for target, source in zip(*levels, strict=True):
                cv2.seamlessClone(source, target, full.copy(), centre, cv2.MIXED_CLONE)

        def dst(targets=targets, sources=sources, mask=mask):
            for target, source in zip(targets[..., 0], sources[..., 0], strict=True):
                scipy_blend(target, source, mask)

        for clone, channels, peers in (
            (poisson.blend_dst, 1, {"pie-torch's DST in SciPy, 1 channel": dst}),
            (poisson.seamless_clone, 1, {"OpenCV, 3 channels": opencv}),
            (poisson.seamless_clone, 3, {"OpenCV, 3 channels": opencv}),
        ):
            run = jax.jit(jax.vmap(functools.partial(clone, mixed=True), (0, 0, None)))
            arrays = (jnp.asarray(x[..., :channels]) for x in (targets, sources))
            name = f"mixed {clone.__name__} {size} x {size} x {channels}"
            report(name, functools.partial(run, *arrays, jnp.asarray(mask)), wanted(peers))


def wanted(peers):
    return {} if ARGS.no_peers or ARGS.gpu else peers


def memory(batch=64):
    """What the compiler sets aside for a batch of P-PII, images and results included."""
    shape = jax.ShapeDtypeStruct((batch, ARGS.size, ARGS.size, 1), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    sizes = jax.jit(jax.vmap(probabilistic_pii)).lower(keys, shape, shape).compile()
    sizes = sizes.memory_analysis()
    total = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    print(f"probabilistic_pii, batch of {batch}: {total / 2**20:.0f} MiB in all")


def main():
    cv2.setNumThreads(ARGS.cores)
    threads = "" if ARGS.gpu else f"{ARGS.cores} core(s), as many threads for all, "
    print(f"{jax.devices()[0].device_kind}, {threads}batches of {BATCH}, {ARGS.size} x {ARGS.size}")
    print("float32; " + ", ".join(f"{name} {version}" for name, version in VERSIONS.items()))
    print("examples per second" if ARGS.gpu else "ms per example, ratio to ours", flush=True)
    tasks()
    clones()
    if ARGS.only in "probabilistic_pii":
        memory()


if __name__ == "__main__":
    main()
