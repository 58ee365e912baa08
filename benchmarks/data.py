"""Preparing records against bare decoding, feeding from records, waiting for data, and memory.

python benchmarks/data.py [--images=200] [--processes=2] [--rounds=3]

Images are made up (smooth shapes with noise), written as PNG in MVTec AD's layout, and prepared as
that set would be. Preparation and bare decoding take turns, and the best round of each counts.
"""

import argparse
import concurrent.futures
import io
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from absl import logging
from PIL import Image
from train_step import build_step, runner

from caal_jax.data import prepare
from caal_jax.data.records import read_prepared
from caal_jax.data.slices import SliceBank
from caal_jax.defaults import training_config
from caal_jax.feeding import Feed


def make_download(root, count, size):
    """`count` PNG images of size x size in the layout of an MVTec AD category called "a"."""
    rng = np.random.default_rng(0)
    for k in range(count):
        shape = cv2.resize(rng.normal(0, 50, (16, 16)), (size, size), interpolation=cv2.INTER_CUBIC)
        image = np.clip(shape + rng.normal(128, 2, (size, size)), 0, 255).astype(np.uint8)
        folder = root / "a" / ("test/good" if k == 0 else "train/good")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{k}.png")
    return root


def decode(path):
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return np.asarray(image).shape


def bare(paths, processes):
    if processes == 1:
        return list(map(decode, paths))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        return list(pool.map(decode, paths, chunksize=16))


def seconds(function, *arguments, **options):
    began = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - began


def preparation(root, paths, processes, rounds):
    found = []
    for k in range(rounds):
        out = root / f"out_{processes}_{k}"
        found.append(
            (
                seconds(bare, paths, processes),
                seconds(prepare.prepare, "mvtec/a", root, out, processes=processes),
            )
        )
    decoding, preparing = (len(paths) / t for t in np.min(found, axis=0))
    print(
        f"{processes} process(es): bare decoding {decoding:7.1f} images/s, preparing "
        f"{preparing:7.1f} images/s, ratio {preparing / decoding:.2f} (aim 0.8)"
    )


def streaming_bank(folder, size):
    data = read_prepared(folder, validation_fraction=0)
    return SliceBank.build(data.train, image_size=size, max_bytes=1)


def feeding(folder):
    """Images per second of records of 256 x 256: in one thread, and read ahead by all."""
    bank, batch, steps = streaming_bank(folder, 256), 16, 60
    began, used = time.perf_counter(), time.process_time()
    for step in range(steps):
        bank.batch(0, step, batch)
    used, took = time.process_time() - used, time.perf_counter() - began
    images = 2 * batch * steps  # a target and a source each
    print(f"one thread: {images / took:7.0f} images/s, {images / used:7.0f} per core (aim 2000)")
    took = seconds(
        lambda: [None for _ in Feed(lambda s: bank.batch(0, s, batch), range(steps), bank)]
    )
    print(f"read ahead: {images / took:7.0f} images/s in {os.cpu_count()} threads")


def waiting(folder, steps=12):
    """The share of the default training's time that goes into waiting for data."""
    config = training_config()
    config.num_members = 1
    run = runner(config, build_step)
    run()
    data = read_prepared(folder, validation_fraction=0)
    size = config.image_size
    for name, bank in (
        ("host memory", SliceBank.build(data.train, image_size=size)),
        ("records", streaming_bank(folder, size)),
    ):
        feed = Feed(lambda s, b=bank: b.batch(0, s, config.batch_size), range(steps), bank)
        for _ in feed:
            run()
        print(f"training from {name}: waits {feed.share_waited:.2%} of the time (aim 2 %)")


def memory(root, count):
    """Peak memory of preparing `count` images and of reading batches of them, each on its own."""
    make_download(root, count, 512)
    prepared = ["prepare.prepare('mvtec/a', root, root / 'out')"]
    stream = [
        "from data import streaming_bank",
        "bank = streaming_bank(root / 'out/mvtec/a/1.0.0', 256)",
        "[bank.batch(0, step, 16) for step in range(40)]",
    ]
    peaks = []
    for lines in (prepared, stream):
        code = "\n".join(
            [
                "import pathlib, resource",
                "from caal_jax.data import prepare",
                f"root = pathlib.Path({str(root)!r})",
                *lines,
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)",
            ]
        )
        made = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(made.stdout.split()[-1]) / 1024)
    return peaks


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        print(f"{options.images} PNG images of 1024 x 1024, 8 bit")
        root = make_download(home / "large", options.images, 1024)
        paths = sorted(root.rglob("*.png"))
        for processes in sorted({1, options.processes}):
            preparation(root, paths, processes, options.rounds)
        root = make_download(home / "small", options.images, 256)
        folder = prepare.prepare("mvtec/a", root, home / "records")
        print("records of 256 x 256, 8 bit")
        feeding(folder)
        waiting(folder)
        for count in (100, 400):
            peaks = memory(home / str(count), count)
            print(
                f"peak memory with {count} images of 512 x 512: preparing {peaks[0]:.0f} MiB, "
                f"reading batches {peaks[1]:.0f} MiB"
            )
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
