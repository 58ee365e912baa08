"""Networks with known weights, and what their PyTorch restatement makes of them.

python tests/localisers/parity.py   writes the stored answers anew; needs torch
"""

import functools
import importlib.util
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from caal_jax.localisers.fpi_wrn import FPIWideResNet
from caal_jax.localisers.nsa_resnet18 import NSAResNet18
from caal_jax.localisers.phiseg import PHiSeg
from caal_jax.localisers.probabilistic_unet import ProbabilisticUNet
from caal_jax.localisers.unet import UNet

STORED = Path(__file__).with_name("torch_answers.npz")
RESTATED = Path(__file__).parents[2] / "benchmarks" / "torch_localisers.py"
DEPTH, LEVELS = 3, 2


def frozen_batch_norm(x, dtype=None):
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, dtype=dtype)(x)


def fill(shapes, rng):
    """Variables under which every part of a network matters."""

    def draw(path, leaf):
        kind, array = path[-1].key, rng.normal(size=leaf.shape)
        if kind == "kernel":
            array *= 1.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            array = np.exp(0.3 * array) if kind in ("scale", "var") else 0.3 * array
        return array.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def noise(rng, shapes):
    return [rng.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]


@functools.cache
def case(name):
    """(network, variables, inputs) of a name, the same at every call."""
    rng = np.random.default_rng(8)
    image, label = rng.random((2, 2, 64, 32, 1), np.float32)
    image = np.concatenate([image, image**2], -1)
    one, initial = {"initial": (-1.0,)}, (-1.0, 0.5)
    net, inputs = {
        "unet": lambda: (UNet(width=8, depth=3, initial=initial), (image,)),
        "fpi_wrn": lambda: (FPIWideResNet(width=1, initial=initial), (image,)),
        "nsa_resnet18": lambda: (NSAResNet18(width=16, initial=initial), (image,)),
        "nsa_resnet18 with batch norm": lambda: (
            NSAResNet18(width=16, initial=initial, norm=frozen_batch_norm),
            (image,),
        ),
        "phiseg": lambda: (
            PHiSeg(width=4, depth=DEPTH, levels=LEVELS, **one),
            (image, label, noise(rng, [(32, 16, 2), (16, 8, 2)])),
        ),
        "probabilistic_unet": lambda: (
            ProbabilisticUNet(width=4, depth=DEPTH, **one),
            (image, label, noise(rng, [(6,)])[0]),
        ),
    }[name]()

    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    return net, fill(shapes, rng), inputs


NAMES = (
    "unet",
    "fpi_wrn",
    "nsa_resnet18",
    "nsa_resnet18 with batch norm",
    "phiseg",
    "probabilistic_unet",
)


def merge(first, second):
    """Batch statistics beside the scales of their norms."""
    if not isinstance(first, dict):
        return first
    return {
        key: merge(first[key], second[key])
        if key in first and key in second
        else first.get(key, second.get(key))
        for key in {**first, **second}
    }


def torch_answer(name):
    """All arrays of the restatement's answer, channels last, as a list."""
    import torch

    spec = importlib.util.spec_from_file_location("torch_localisers", RESTATED)
    restated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(restated)

    def channels_first(array):
        return torch.tensor(np.moveaxis(array, -1, 1)) if array.ndim == 4 else torch.tensor(array)

    _, variables, inputs = case(name)
    tree = merge(variables["params"], variables.get("batch_stats", {}))
    weights = restated.Weights(restated.to_torch(tree))
    options = {
        "unet": {"depth": 3},
        "fpi_wrn": {"width": 1, "outputs": 2},
        "phiseg": {"depth": DEPTH},
        "probabilistic_unet": {"depth": DEPTH},
    }.get(name, {})
    function = getattr(restated, name.split()[0])
    with torch.no_grad():
        found = function(weights, *jax.tree.map(channels_first, inputs), **options)
    return [
        np.moveaxis(np.asarray(a), 1, -1) if a.ndim == 4 else np.asarray(a)
        for a in jax.tree.leaves(found)
    ]


@functools.cache
def stored_answers():
    with np.load(STORED) as file:
        return dict(file)


if __name__ == "__main__":
    answers = {
        f"{name} {number}": array
        for name in NAMES
        for number, array in enumerate(torch_answer(name))
    }
    np.savez_compressed(STORED, **answers)
    print(STORED.stat().st_size, {name: array.shape for name, array in answers.items()})
