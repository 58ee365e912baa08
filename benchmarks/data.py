"""Preparing records against bare decoding, feeding from records, waiting for data, and memory.

python benchmarks/data.py [--images=400] [--processes=2] [--rounds=3]

Images are made up (smooth shapes with noise), written as PNG in MVTec AD's layout, and prepared as
that set would be. Preparation and bare decoding take turns, and the best round of each counts. What
preparation costs however few the images are (starting processes, closing the set) is measured on
a few and told apart. Ratios of processor time hold on a busy machine too. Prints a table.
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

import numpy as np
from PIL import Image

# All else is imported where it is needed: the processes that decode load this file.

FEW = 20  # images: two parts, so that several processes start


def make_download(root, count, size):
    """`count` PNG images of size x size in the layout of an MVTec AD category called "a"."""
    rng = np.random.default_rng(0)
    for k in range(count):
        shape = Image.fromarray(np.float32(rng.normal(0, 50, (16, 16)))).resize((size, size), 3)
        image = np.clip(shape + rng.normal(128, 2, (size, size)), 0, 255).astype(np.uint8)
        folder = root / "a" / ("test/good" if k == 0 else "train/good")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{k}.png")
    return root


def decode(path):
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return np.asarray(image).shape


def used(function, *arguments, **options):
    """(seconds, processor seconds, result) of a call, ended child processes included."""

    def processor_seconds():
        found = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in found)

    began, busy = time.perf_counter(), processor_seconds()
    result = function(*arguments, **options)
    return time.perf_counter() - began, processor_seconds() - busy, result


def bare(paths, processes):
    if processes == 1:
        for path in paths:
            decode(path)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        for _ in pool.map(decode, paths, chunksize=16):
            pass


def row(what, found, aim=""):
    print(f"| {what} | {found} | {aim} |", flush=True)


def preparation(home, count, processes, rounds):
    from caal_jax.data import prepare

    sets = [home / "few", home / "many"]
    for root, number in zip(sets, (FEW, count), strict=True):
        if not root.exists():
            make_download(root, number, 1024)
    paths = [sorted((root / "a").rglob("*.png")) for root in sets]
    found = []
    for k in range(rounds):
        found.append(
            [used(bare, some, processes)[:2] for some in paths]
            + [
                used(
                    prepare.prepare,
                    "mvtec/a",
                    root,
                    root / f"out_{processes}_{k}",
                    processes=processes,
                )[:2]
                for root in sets
            ]
        )
    few, many, few_made, many_made = np.min(found, axis=0)
    decoding, preparing = (count - FEW) / (many - few), (count - FEW) / (many_made - few_made)
    start = few_made[0] - FEW / preparing[0]
    row(
        f"preparing, {processes} process(es), images/s (bare decoding)",
        f"{preparing[0]:.0f} ({decoding[0]:.0f}), and {start:.1f} s to start",
    )
    ratio, busy = preparing / decoding
    row("the same as a ratio (of processor time)", f"{ratio:.2f} ({busy:.2f})", "0.8")


def streaming_bank(folder, size):
    from caal_jax.data.records import read_prepared
    from caal_jax.data.slices import SliceBank

    data = read_prepared(folder, validation_fraction=0)
    return SliceBank.build(data.train, image_size=size, max_bytes=1)


def feeding(folder):
    """Images per second of records of 256 x 256: in one thread, and read ahead by all."""
    from caal_jax.feeding import Feed

    bank, batch, steps = streaming_bank(folder, 256), 16, range(60)
    images = 2 * batch * len(steps)  # a target and a source each
    bank.batch(0, 0, batch)  # opens the files
    took, busy, _ = used(lambda: [bank.batch(0, step, batch) for step in steps])
    row("feeding from records, one thread, images/s", f"{images / took:.0f}")
    row("the same per processor second", f"{images / busy:.0f}", "2000")
    took, _, _ = used(
        lambda: [None for _ in Feed(lambda step: bank.batch(0, step, batch), steps, bank)]
    )
    row(f"feeding from records, {os.cpu_count()} threads, images/s", f"{images / took:.0f}")


def waiting(folder, large, steps=20):
    """The share of the default training's time, after its first step, spent waiting for data.

    large: prepared images of 1024 x 1024, which are made smaller whenever they are read.
    """
    from train_step import build_step, runner

    from caal_jax.data.records import read_prepared
    from caal_jax.data.slices import SliceBank
    from caal_jax.defaults import training_config
    from caal_jax.feeding import Feed

    config = training_config()
    config.num_members = 1  # the fastest step there is
    run = runner(config, build_step)
    run()
    data = read_prepared(folder, validation_fraction=0)
    size = config.image_size
    for name, bank in (
        ("host memory", SliceBank.build(data.train, image_size=size)),
        ("records", streaming_bank(folder, size)),
        ("records of 1024 x 1024", streaming_bank(large, size)),
    ):
        feed = Feed(lambda s, b=bank: b.batch(0, s, config.batch_size), range(steps), bank)
        batches, waits, began = iter(feed), [], None
        for _ in range(steps):
            waits.append(used(next, batches)[0])
            began = began or time.perf_counter()
            run()
        share = sum(waits[1:]) / (time.perf_counter() - began)
        row(f"share of training spent waiting for {name}", f"{share:.2%}", "2 %")
        row(f"the first batch from {name}", f"{waits[0]:.2f} s")


def memory(root, count):
    """Peak memory of preparing `count` images and of reading batches of them, each on its own."""
    make_download(root, count, 512)
    prepared = ["prepare.prepare('mvtec/a', root, root / 'out')"]
    stream = [
        "from data import streaming_bank",
        "bank = streaming_bank(root / 'out/mvtec/a/1.0.0', 256)",
        "[bank.batch(0, step, 16) for step in range(40)]",
    ]
    start = [
        "import pathlib",
        "from data import status_mib",
        "from caal_jax.data import prepare",
        f"root = pathlib.Path({str(root)!r})",
    ]
    peaks = [
        printed([*start, *lines, "print(status_mib('VmHWM'))"]) for lines in (prepared, stream)
    ]
    row(
        f"peak memory with {count} images of 512 x 512: preparing, reading batches",
        f"{peaks[0]:.0f} MiB, {peaks[1]:.0f} MiB",
        "equal for any number",
    )


def status_mib(field):
    """A line of Linux's own account of this process; getrusage would count its parent's peak."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024


def printed(lines):
    """The number that these lines of Python print last, run as a process of their own."""
    made = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(made.stdout.split()[-1])


def inference_memory(patch):
    """Peak memory of localising a volume of 256^3, beyond that volume, with two tiny networks."""
    how = f"patches of {patch}" if patch else "slices"
    ratio = printed(["from data import localise_volume", f"print(localise_volume({patch!r}))"])
    row(f"localising 256^3 voxels by {how}: memory over the volume's in float32", ratio, "3")


def localise_volume(patch, side=256):
    """The peak of the memory that `FinishedRun.predict` takes, over that of a float32 volume."""
    import jax

    from caal_jax.confidence.calibration import Calibration, ImageCalibration
    from caal_jax.data.case import Case, Geometry
    from caal_jax.defaults import training_config
    from caal_jax.localise import Decisions, FinishedRun, build_predictor, new_models

    config = training_config()
    config.patch_size, config.image_size, config.num_members = patch, side, 2
    config.width, config.depth = 4, 2
    members = jax.tree.map(np.asarray, jax.jit(lambda: new_models(config, 1))())
    decisions = Decisions(Calibration(1, 0), ImageCalibration(9, -6), (0.2, 0.6), 0.6, 0.2)
    run = FinishedRun(config, build_predictor(config, members), 1, decisions)
    volume = np.random.default_rng(0).random((side, side, side, 1), np.float32)
    run.predict(Case("few", volume[: side // 4], Geometry((1.0, 1.0, 1.0), 2)))  # compiles
    before = status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    run.predict(Case("whole", volume, Geometry((1.0, 1.0, 1.0), 2)))
    return round((status_mib("VmHWM") - before) / (volume.nbytes / 2**20), 1)


def main():
    from absl import logging

    from caal_jax.data import prepare

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    print("| PNG of 1024 x 1024, records of 256 x 256, 8 bit | found | aim |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        for processes in sorted({1, options.processes}):
            preparation(home, options.images, processes, options.rounds)
        folder = prepare.prepare("mvtec/a", make_download(home / "s", 200, 256), home / "records")
        feeding(folder)
        download = make_download(home / "l", 64, 1024)
        waiting(folder, prepare.prepare("mvtec/a", download, home / "large"))
        for count in (100, 400):
            memory(home / str(count), count)
    for patch in ("", "32,32,32"):
        inference_memory(patch)


if __name__ == "__main__":
    main()
