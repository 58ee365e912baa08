"""Histogram equalisation against scikit-image, OpenCV, kornia: python benchmarks/equalisation.py

Milliseconds per image, the best of several alternating rounds; every library gets the same images
and the same processor cores (--cores, one by default). Above x1 the package is faster. kornia is a
peer where it and PyTorch are installed; nothing else here needs them. --gpu measures the package
alone on whatever device JAX finds.
"""

import argparse
import importlib.util
import os

PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--cores", type=int, default=1)
PARSER.add_argument("--size", type=int, default=256)
PARSER.add_argument("--batch", type=int, default=16)
PARSER.add_argument("--rounds", type=int, default=10)
PARSER.add_argument("--gpu", action="store_true", help="no peers; synchronise once per batch")
ARGS = PARSER.parse_args()
if hasattr(os, "sched_setaffinity") and not ARGS.gpu:  # before any library counts the cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ARGS.cores])

import cv2  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import skimage  # noqa: E402
from scipy import ndimage  # noqa: E402
from skimage import exposure  # noqa: E402
from timing import alternate  # noqa: E402

from caal_jax import preprocess  # noqa: E402


def pictures(batch, size):
    """Smooth, dark, slightly noisy float32 images in [0, 1], and the same as uint8 and uint16."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.random((batch, size, size)), (0, 3, 3))
    floats = ((noise - noise.min()) / np.ptp(noise)) ** 1.5 + rng.normal(0, 0.01, noise.shape)
    floats = floats.clip(0, 1).astype(np.float32)
    return floats, (255 * floats).astype(np.uint8), (65535 * floats).astype(np.uint16)


def body(image):
    return preprocess.equalize_foreground(image[..., None], preprocess.foreground(image[..., None]))


def kornia_contests(floats):
    """The same batch for kornia, which takes (B, 1, H, W) tensors at once."""
    import kornia
    import torch

    torch.set_num_threads(ARGS.cores)

    def on_tensors(function):
        tensors = torch.from_numpy(floats[:, None].copy())

        def all_at_once(_):
            with torch.no_grad():
                return function(tensors)

        return all_at_once

    clahe = on_tensors(lambda x: kornia.enhance.equalize_clahe(x, 40.0, (8, 8)))
    return {
        f"equalize_hist (kornia {kornia.__version__} equalize)": (
            preprocess.equalize_hist,
            on_tensors(kornia.enhance.equalize),
            floats,
        ),
        "equalize_adapthist (kornia equalize_clahe)": (
            preprocess.equalize_adapthist,
            clahe,
            floats,
        ),
    }


def main():
    cv2.setNumThreads(ARGS.cores)
    floats, levels8, levels16 = pictures(ARGS.batch, ARGS.size)
    clahe = cv2.createCLAHE(40.0, (8, 8)).apply
    contests = {
        "equalize_hist float32": (preprocess.equalize_hist, exposure.equalize_hist, floats),
        "equalize_hist uint16": (preprocess.equalize_hist, exposure.equalize_hist, levels16),
        "foreground + equalize_foreground (equalize_hist)": (body, exposure.equalize_hist, floats),
        "equalize_adapthist float32": (
            preprocess.equalize_adapthist,
            exposure.equalize_adapthist,
            floats,
        ),
        "equalize_hist_opencv uint8": (preprocess.equalize_hist_opencv, cv2.equalizeHist, levels8),
        "clahe_opencv uint8": (preprocess.clahe_opencv, clahe, levels8),
        "clahe_opencv uint16, one image": (preprocess.clahe_opencv, clahe, levels16[:1]),
    }
    by_batch = {}
    if not ARGS.gpu and importlib.util.find_spec("kornia") and importlib.util.find_spec("torch"):
        by_batch = kornia_contests(floats)
    device = jax.devices()[0].device_kind
    print(f"{device}, {ARGS.cores} core(s), {floats.shape}, jax {jax.__version__}, ", end="")
    print(f"scikit-image {skimage.__version__}, OpenCV {cv2.__version__}; ms per image")
    print(f"{'function (peer, where it has another name)':50} {'here':>8} {'peer':>8}")
    for name, (function, peer, images) in (contests | by_batch).items():
        batched, on_device = jax.jit(jax.vmap(function)), jax.device_put(images)
        run = [lambda f=batched, x=on_device: f(x)]
        if not ARGS.gpu:
            each = name not in by_batch
            run.append(lambda f=peer, x=images, e=each: [f(one) for one in x] if e else f(x))
        times = [1e3 * t / len(images) for t in alternate(*run, rounds=ARGS.rounds)]
        ratio = "" if ARGS.gpu else f"  x{times[1] / times[0]:.2f}"
        print(f"{name:50} " + " ".join(f"{t:8.3f}" for t in times) + ratio)


if __name__ == "__main__":
    main()
