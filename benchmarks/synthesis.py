"""Synthesis tasks against plain NumPy and SciPy: python benchmarks/synthesis.py

Milliseconds per example, the best of several alternating rounds, on the same images and the same
processor cores (--cores, one by default). The peers follow the published generators: FPI in NumPy,
PII as one sparse solve per image, P-PII as one SciPy sine-transform blend per rater; restated in
vectorised form, they are faster than the published code.
"""

import argparse
import functools
import os

PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--cores", type=int, default=1)
PARSER.add_argument("--size", type=int, default=256)
PARSER.add_argument("--batch", type=int, default=16)
PARSER.add_argument("--no_peers", action="store_true", help="measure the package alone")
ARGS = PARSER.parse_args()
if hasattr(os, "sched_setaffinity"):  # before any library counts the cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ARGS.cores])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import scipy  # noqa: E402
from scipy import fft, ndimage, sparse  # noqa: E402
from timing import alternate  # noqa: E402

from caal_jax.preprocess import equalize_foreground, foreground  # noqa: E402
from caal_jax.synthesis import fpi, pii, probabilistic_pii  # noqa: E402


def draw_box(rng, size):
    half = rng.integers(round(0.05 * size), round(0.2 * size))
    centre = rng.integers(round(0.1 * size), round(0.9 * size), 2)
    low, high = np.maximum(centre - half, 1), np.minimum(centre + half, size - 1)
    return slice(low[0], high[0]), slice(low[1], high[1])


def numpy_fpi(rng, target, source):
    box, share = draw_box(rng, len(target)), rng.uniform(0.05, 0.95)
    image, label = target.copy(), np.zeros_like(target)
    image[box] = (1 - share) * target[box] + share * source[box]
    label[box] = share * (np.floor(target[box] / 1e-3) != np.floor(source[box] / 1e-3))
    return image, label


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


def main():
    rng = np.random.default_rng(0)
    noise = rng.random((2 * ARGS.batch, ARGS.size, ARGS.size))
    noise = ndimage.gaussian_filter(noise, (0, 3, 3))
    images = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    targets, sources = images[: ARGS.batch], images[ARGS.batch :]
    device_images = jnp.asarray(targets)[..., None], jnp.asarray(sources)[..., None]
    keys = jax.random.split(jax.random.key(0), ARGS.batch)

    def batch_of(task):
        compiled = jax.jit(jax.vmap(task))
        return lambda: compiled(keys, *device_images)

    def mapped_foreground(key, target, source):
        return probabilistic_pii(key, target, source, foreground=foreground(target))

    def equalised(task):
        def run(key, target, source):
            body = foreground(target)
            target = equalize_foreground(target, body)
            source = equalize_foreground(source, foreground(source))
            return task(key, target, source, foreground=body)

        return run

    reference = functools.partial(probabilistic_pii, form="reference")
    contests = {
        "fpi": (fpi, numpy_fpi),
        "pii": (pii, scipy_pii),
        "probabilistic_pii": (probabilistic_pii, scipy_ppii),
        "probabilistic_pii, reference form": (reference, scipy_ppii),
        "probabilistic_pii, no label_std": (lambda *a: probabilistic_pii(*a)[:2], None),
        "probabilistic_pii in a foreground": (mapped_foreground, None),
        "equalisation of both + fpi": (equalised(fpi), None),
        "equalisation of both + probabilistic_pii": (equalised(probabilistic_pii), None),
    }
    print(f"{jax.devices()[0].device_kind}, {ARGS.cores} core(s), {targets.shape}, float32, ")
    print(f"jax {jax.__version__}, SciPy {scipy.__version__}; ms per example, batch, peer")
    for name, (task, peer) in contests.items():
        functions = [batch_of(task)]
        if peer and not ARGS.no_peers:
            functions.append(
                lambda peer=peer: [peer(rng, *p) for p in zip(targets, sources, strict=True)]
            )
        mine, *theirs = (1e3 * t / ARGS.batch for t in alternate(*functions, rounds=5))
        ratio = f"{theirs[0]:9.3f}  x{theirs[0] / mine:.0f}" if theirs else ""
        print(f"{name:44} {mine:8.3f} {mine * ARGS.batch:9.2f} {ratio}")


if __name__ == "__main__":
    main()
