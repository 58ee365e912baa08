"""Faults injected into tiny runs, and what was lost: python benchmarks/faults.py [--repeats=8]

Each fault strikes a training with evaluation on its way; the same call is then repeated until it
ends. Survived: parameters, optimiser state, training curve, decisions and results are those of the
run that nothing happened to, bit for bit ("different" counts the others). Times are not measured.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

from caal_jax import evaluate as evaluation
from caal_jax import files, parallel
from caal_jax import train as training
from caal_jax.checkpoint import Checkpoints
from caal_jax.data.phantom import phantom_dataset
from caal_jax.defaults import training_config
from caal_jax.errors import InputError, Interrupted
from caal_jax.train import starting_state, train

NOBODY = 65534
STEPS = 20
REFUSED, STOPPED = 3, 4  # exit codes of a child for InputError and Interrupted
INJECTED, SURVIVED, LOST, DIFFERENT = range(4)  # columns of the table


def tiny_config(**changes):
    """A training of seconds: 20 steps, a checkpoint every 5."""
    config = training_config()
    config.dataset, config.region, config.equalise = "mood", "brain", "none"
    config.image_size, config.width, config.depth = 32, 4, 2
    config.batch_size, config.num_steps, config.warmup_steps = 8, STEPS, 1
    config.log_steps, config.checkpoint_steps, config.num_resamples = 2, 5, 20
    config.num_patches, config.num_members, config.num_samples = 1, 1, 1
    config.task, config.source_jitter = "fpi", False
    config.update(changes)
    return config


def child(
    workdir,
    cache,
    *,
    strike=None,
    changes=(),
    evaluates=True,
    devices=1,
    address="",
    processes=1,
    number=0,
):
    """One run in a process of its own. strike: (a key of STRIKES, at which call of it).

    What it prints goes to a file beside the workdir.
    """
    log = os.open(f"{workdir}.log{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    if processes > 1:
        os.environ["JAX_COORDINATOR_ADDRESS"] = address
        os.environ |= {"JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(number)}
        parallel.start()
    training.MIN_SYNTHETIC = 4
    if strike is not None:
        STRIKES[strike[0]](strike[1])
    config = tiny_config(**dict(changes))
    dataset = phantom_dataset(
        region="brain", size=32, num_train=3, num_validation=2, num_test=3, seed=3
    )
    try:
        train(config, workdir, dataset)
        if parallel.writes() and evaluates:
            with files.lock(workdir):
                evaluation.evaluate(config, workdir, dataset)
    except (InputError, Interrupted, OSError) as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(STOPPED if isinstance(error, Interrupted) else REFUSED)


def before(owner, name, act, at, matches=lambda *_: True):
    """Calls `act` before the at-th matching call of a function or method from now."""
    real, count = getattr(owner, name), [0]

    def struck(*args, **options):
        count[0] += matches(*args)
        if count[0] == at and matches(*args):
            act()
        return real(*args, **options)

    setattr(owner, name, struck)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def die_once_begun(at):
    """Kills in the middle of the at-th save: as soon as its temporary folder is there."""
    real, count = Checkpoints._write, [0]

    def write(self, step, *rest):
        count[0] += 1
        if count[0] == at:
            threading.Thread(target=watch, args=(self._directory, step), daemon=True).start()
        real(self, step, *rest)

    def watch(directory, step):
        while not any(directory.glob(f"{step}.orbax*")):
            time.sleep(0)
        die()

    Checkpoints._write = write


def around_save(condition, at):
    """Holds a condition during the at-th save."""
    real, count = Checkpoints._write, [0]

    def write(self, *rest):
        count[0] += 1
        with condition(self._directory) if count[0] == at else contextlib.nullcontext():
            real(self, *rest)

    Checkpoints._write = write


@contextlib.contextmanager
def full_disk(_):
    """No file may grow beyond 8 KiB, so that saving fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def forbidden(directory):
    """The folder cannot be written to; root, who could, is somebody else meanwhile."""
    directory.chmod(0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o700)


def is_file(name):
    return lambda path, *_: Path(path).name == name


STRIKES = {
    "step": lambda at: before(training, "round_batches", die, at),
    "save": die_once_begun,
    "calibration": lambda at: before(files, "write_text", die, 1, is_file("decisions.json")),
    "evaluation": lambda at: before(evaluation, "write_maps", die, at),
    "report": lambda at: before(evaluation.report, "write_report", die, 1),
    "SIGTERM": lambda at: before(training, "round_batches", ask_to_stop, at),
    "full disk": lambda at: around_save(full_disk, at),
    "permission": lambda at: around_save(forbidden, at),
}


class Children:
    """Starts children from a process that has imported everything already."""

    def __init__(self, cache):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["faults"])
        self._cache = cache

    def start(self, workdir, **options):
        # By its importable name, so that children find it whoever started them.
        target = importlib.import_module("faults").child
        arguments = Path(workdir), self._cache
        process = self._context.Process(target=target, args=arguments, kwargs=options)
        process.start()
        return process

    def run(self, workdir, **options):
        """Runs a child to its end; returns its exit code, negative for a signal."""
        process = self.start(workdir, **options)
        process.join()
        return process.exitcode


def outcome(workdir):
    """What must not depend on faults: a dict that `same` compares."""
    workdir = Path(workdir)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    results = json.loads((workdir / "metrics.json").read_text())
    del results["run"]
    return {
        "members": trained(workdir, tiny_config()),
        "curve": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
        "decisions": json.loads((workdir / "decisions.json").read_text()),
        "results": results,
        "scores": (workdir / "predictions" / "scores.csv").read_text(),
        "left over": sorted(p.name for p in workdir.rglob("*") if ".partial" in p.name),
    }


def trained(workdir, config):
    """The newest checkpoint of a part: (its step, its arrays)."""
    with Checkpoints(workdir) as checkpoints:
        state, step = starting_state(config, 1, checkpoints.members(), checkpoints)
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def same(found, expected):
    (step, arrays), (other_step, others) = found["members"], expected["members"]
    alike = step == other_step and all(map(np.array_equal, arrays, others))
    return alike and {**found, "members": 0} == {**expected, "members": 0}


def damage(workdir, how, rng):
    """Truncates, flips a byte of, or removes the largest file of the newest checkpoint."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        newest = Path(workdir) / "checkpoints" / str(checkpoints.latest_step())
    path = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: int(rng.random() * len(data))])
    elif how == "byte flipped":
        data[int(rng.random() * len(data))] ^= 0xFF
        path.write_bytes(data)
    else:
        path.unlink()


def finish(children, workdir, expected):
    """Repeats the call until it ends well, three times at most; returns the column it counts in."""
    if not any(children.run(workdir) == 0 for _ in range(3)):
        return LOST
    return SURVIVED if same(outcome(workdir), expected) else DIFFERENT


@contextlib.contextmanager
def small_disk(parent):
    """A file system of a few megabytes; None where this user may not mount one."""
    path = Path(tempfile.mkdtemp(dir=parent))
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def fill(path, spare):
    """Fills a file system up to `spare` bytes."""
    stat = os.statvfs(path)
    ballast = Path(path) / "ballast"
    ballast.write_bytes(b"x" * max(0, stat.f_bavail * stat.f_frsize - spare))
    return ballast


def strike_all(children, folder, repeats, rng):
    """Yields (fault, workdir or None where it struck nothing) for every injected fault."""

    def struck(name, number, at, expected):
        workdir = folder / f"{name}_{number}".replace(" ", "_")
        code = children.run(workdir, strike=(name, at))
        return workdir if code == expected else None

    for number in range(repeats):
        kill = -signal.SIGKILL
        yield "killed in a step", struck("step", number, rng.randint(1, STEPS), kill)
        yield "killed in a save", struck("save", number, rng.randint(1, 4), kill)
        yield "killed in calibration", struck("calibration", number, 1, kill)
        yield "killed in evaluation", struck("evaluation", number, rng.randint(1, 3), kill)
        yield "killed in the report", struck("report", number, 1, kill)
        yield "SIGTERM", struck("SIGTERM", number, rng.randint(1, STEPS - 1), STOPPED)
        yield "save: disk full", struck("full disk", number, rng.randint(1, 3), 0)
        yield "last save: disk full", struck("full disk", f"last{number}", 4, REFUSED)
        yield "save: not permitted", struck("permission", number, rng.randint(1, 3), 0)
        for how in ("truncated", "byte flipped", "file gone"):
            workdir = folder / f"{how}_{number}".replace(" ", "_")
            children.run(workdir, strike=("step", rng.randint(12, STEPS)))
            damage(workdir, how, rng)
            yield f"checkpoint: {how}", workdir
    seconds = time.monotonic()
    children.run(folder / "timed")
    seconds = time.monotonic() - seconds
    for number in range(repeats):
        workdir = folder / f"moment_{number}"
        process = children.start(workdir)
        process.join(rng.uniform(0, seconds))
        process.kill()
        process.join()
        yield "killed at any moment", workdir


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=8, help="of each fault")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    table = {}
    with tempfile.TemporaryDirectory(prefix="caal_jax_faults_") as folder:
        folder = Path(folder)
        children = Children(folder / "cache")
        children.run(folder / "unbroken")
        expected = outcome(folder / "unbroken")
        strikes = strike_all(children, folder, options.repeats, rng)
        for number, (fault, workdir) in enumerate(strikes):
            row = table.setdefault(fault, [0] * 4)
            if workdir is None:
                continue
            row[INJECTED] += 1
            row[finish(children, workdir, expected)] += 1
            shutil.rmtree(workdir)
            print(f"{number + 1}: {fault} {row}", file=sys.stderr, flush=True)
        with small_disk(folder) as disk:
            for number in range(options.repeats if disk else 0):
                row = table.setdefault("file system full", [0] * 4)
                workdir = disk / f"{number}"
                children.run(workdir, strike=("step", 8))
                ballast = fill(disk, rng.randrange(100_000))
                refused = children.run(workdir) == REFUSED
                ballast.unlink()
                if refused:
                    row[INJECTED] += 1
                    row[finish(children, workdir, expected)] += 1
                shutil.rmtree(workdir)
    print("| fault | injected | survived | lost | different |\n| --- | --- | --- | --- | --- |")
    for fault, row in table.items():
        print(f"| {fault} | {' | '.join(map(str, row))} |")
    total = np.sum(list(table.values()), axis=0)
    print(f"| all | {' | '.join(map(str, total))} |")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
