"""Does a long run grow? python benchmarks/growth.py [--steps=5000] [--files=1000]

Trains a tiny network with a checkpoint every 250 steps, then localises PNG files, and prints the
memory, open files and threads of the process on the way, and the size of the logs in the end.
"""

import argparse
import functools
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from faults import before, tiny_config
from PIL import Image

from caal_jax import train as training
from caal_jax.data.phantom import phantom_dataset
from caal_jax.localise import FinishedRun
from caal_jax.predict import predict
from caal_jax.train import train

SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def row(name):
    """Prints a row of the table: the present use of this process, from Linux's /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    memory = int(status["VmRSS"].split()[0]) / 1024
    files = len(os.listdir("/proc/self/fd"))
    print(f"| {name} | {memory:.0f} | {files} | {status['Threads'].strip()} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--files", type=int, default=1000)
    options = parser.parse_args()
    config = tiny_config(num_steps=options.steps, checkpoint_steps=250, log_steps=10)
    dataset = phantom_dataset(
        region="brain", size=32, num_train=3, num_validation=2, num_test=1, seed=3
    )
    print("| after | MiB | open files | threads |\n| --- | --- | --- | --- |")
    for owner, method, total, unit in (
        (training, "round_batches", options.steps, "steps"),
        (FinishedRun, "predict", options.files, "files"),
    ):
        for share in SHARES:
            at = int(total * share)
            before(owner, method, functools.partial(row, f"{at} {unit}"), at)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="caal_jax_growth_") as folder:
        folder = Path(folder)
        train(config, folder / "run", dataset)
        scans = folder / "scans"
        scans.mkdir()
        for number in range(options.files):
            values = rng.integers(0, 255, (32, 32), np.uint8)
            Image.fromarray(values).save(scans / f"{number:04d}.png")
        predict(folder / "run", scans, folder / "maps")
        logs = [folder / "run" / "metrics.jsonl", *(folder / "run" / "tensorboard").rglob("*")]
        kibibytes = sum(path.stat().st_size for path in logs if path.is_file()) / 1024
        print(f"\nCurve and TensorBoard events of {options.steps} steps: {kibibytes:.0f} KiB.")
        print(f"JAX {jax.__version__} on {jax.default_backend()}.")


if __name__ == "__main__":
    main()
