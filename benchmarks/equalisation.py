"""Histogram equalisation against scikit-image and OpenCV: python benchmarks/equalisation.py

Milliseconds per image, the best of several alternating rounds; every library gets the same images
and the same processor cores (--cores, one by default).
"""

import argparse
import os

PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--cores", type=int, default=1)
PARSER.add_argument("--size", type=int, default=256)
PARSER.add_argument("--batch", type=int, default=16)
ARGS = PARSER.parse_args()
if hasattr(os, "sched_setaffinity"):  # before any library counts the cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ARGS.cores])

import cv2  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import skimage  # noqa: E402
from timing import alternate  # noqa: E402

from caal_jax.preprocess import equalize_foreground, equalize_hist, foreground  # noqa: E402


def main():
    cv2.setNumThreads(ARGS.cores)
    rng = np.random.default_rng(0)
    shape = (ARGS.batch, ARGS.size, ARGS.size)
    floats = rng.normal(0.4, 0.1, shape).clip(0, 1).astype(np.float32)
    levels = {8: (floats * 255).astype(np.uint8), 16: (floats * 65535).astype(np.uint16)}
    ours = jax.jit(jax.vmap(equalize_hist))
    body = jax.jit(jax.vmap(lambda x: equalize_foreground(x, foreground(x))))
    on_device = jax.device_put(floats)

    def peer(function, images):
        return lambda: [function(image) for image in images]

    contests = {
        "equalize_hist float32": (
            lambda: ours(on_device),
            peer(skimage.exposure.equalize_hist, floats),
        ),
        "equalize_hist uint16": (
            lambda: ours(levels[16]),
            peer(skimage.exposure.equalize_hist, levels[16]),
        ),
        "equalize_hist uint8 (peer: OpenCV, uint8 out)": (
            lambda: ours(levels[8]),
            peer(cv2.equalizeHist, levels[8]),
        ),
        "foreground + equalize_foreground (peer: equalize_hist)": (
            lambda: body(on_device[..., None]),
            peer(skimage.exposure.equalize_hist, floats),
        ),
    }
    print(f"{jax.devices()[0].device_kind}, {ARGS.cores} core(s), {shape}, jax {jax.__version__}, ")
    print(f"scikit-image {skimage.__version__}, OpenCV {cv2.__version__}; ms per image")
    for name, functions in contests.items():
        mine, theirs = (1e3 * t / ARGS.batch for t in alternate(*functions))
        print(f"{name:56} {mine:8.3f} {theirs:8.3f}  x{theirs / mine:.1f}")


if __name__ == "__main__":
    main()
