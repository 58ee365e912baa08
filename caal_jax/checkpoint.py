"""Saves and restores the stacked state of an ensemble with Orbax, whatever the devices."""

import contextlib
import json
import os
import shutil
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as managers

from caal_jax.errors import InputError

KEEP = 2  # the newest, and one to fall back on should it be damaged
LOSS = "validation_loss"


class Checkpoints:
    """The newest checkpoints under `folder/checkpoints`; use as a context manager.

    A checkpoint holds named trees of NumPy arrays stacked over members, so a run may resume on
    another number of devices, and prediction reads the "model" tree alone; checksums of every
    array, since the storage itself does not notice a changed byte; and the members' numbers. They
    are arrays and JSON: reading one from a stranger runs no code. The latest two are kept, and the
    one of the lowest validation loss.

    Saving happens in a thread. One that fails (a full disk) leaves the older ones as they were, is
    told, and is an error only if no later one succeeds. read_only: nothing is made or cleaned up.
    """

    def __init__(self, folder, *, read_only=False):
        self._directory = Path(folder).resolve() / "checkpoints"
        # One process writes, whatever their number; the others are not waited for.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process_{jax.process_index()}",
        )
        if not read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = None
        if self._directory.is_dir():
            with _quiet_orbax():
                kept = [managers.LatestN(KEEP)]
                kept.append(
                    managers.BestN(
                        get_metric_fn=lambda found: -found[LOSS],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    )
                )
                options = ocp.CheckpointManagerOptions(
                    preservation_policy=managers.AnyPreservationPolicy(kept),
                    best_fn=lambda found: found[LOSS],
                    best_mode="min",
                    create=False,
                    read_only=read_only,
                    cleanup_tmp_directories=not read_only,
                    enable_async_checkpointing=False,
                    multiprocessing_options=alone,
                )
                self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving, self._failure = None, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thread.shutdown()  # waits for the save that is under way
        if self._manager is not None:
            self._manager.close()

    def steps(self):
        """The steps of complete checkpoints, newest first; they may still be damaged."""
        return sorted(self._manager.all_steps(), reverse=True) if self._manager else []

    def latest_step(self):
        """The newest complete step, or None."""
        return next(iter(self.steps()), None)

    def best_step(self):
        """The step of the lowest validation loss; the newest if none has one; or None."""
        return (self._manager.best_step() if self._manager else None) or self.latest_step()

    def save(self, step, members, *, validation_loss=None, **trees):
        """Begins to save trees of NumPy arrays; waits first for the save before this one.

        members: the numbers of the members that the arrays are stacked over.
        """
        self.wait()
        measured = None if validation_loss is None else {LOSS: float(validation_loss)}
        self._saving = self._thread.submit(self._write, step, list(members), measured, trees)

    def wait(self):
        """Waits for the save that is under way, if any."""
        if self._saving is not None:
            self._saving.result()

    def finish(self):
        """Waits, and raises `InputError` if the last save failed."""
        self.wait()
        if self._failure is not None:
            step, reason = self._failure
            raise InputError(
                self._directory,
                found=f"that step {step} could not be saved ({reason})",
                expected="a folder that can be written to, with room for another checkpoint",
                remedy="Make room, then repeat the command: it goes on from step "
                f"{self.latest_step() or 0}.",
            )

    def _write(self, step, members, measured, trees):
        meta = {"members": members, "checksums": checksums(trees)}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["meta"] = ocp.args.JsonSave(meta)
        newest = self.latest_step() or 0
        try:
            with _quiet_orbax():
                self._manager.save(
                    step, args=ocp.args.Composite(**items), metrics=measured, force=True
                )
            self._failure = None
            self._sweep()  # again: writers of a save that failed may have outlived its end
        # Orbax and TensorStore know many errors for a disk that is full or not writable.
        except Exception as error:
            self._failure = step, _first_line(error)
            with contextlib.suppress(OSError):  # the folder may be out of reach altogether
                os.listdir(self._directory)  # raises then; what follows might see an empty one
                self._sweep()
                self._manager.reload()
            _tell(f"step {step} could not be saved ({_first_line(error)}); step {newest} stays")

    def _sweep(self):
        """Removes what saves that failed left behind."""
        for partial in self._directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(partial, ignore_errors=True)

    def members(self):
        """The members that the newest readable checkpoint is stacked over; () if there is none."""
        for step in self.steps():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                meta = json.loads((self._directory / str(step) / "meta" / "metadata").read_text())
                return tuple(meta["members"])
        return ()

    def restore(self, *, step=None, **templates):
        """The newest undamaged trees of these names: (step, {name: tree of NumPy arrays}).

        templates: what `jax.eval_shape` returns. Damaged checkpoints are told and passed over;
        with `step` only that one will do. Raises `InputError` if none can be read.
        """
        reasons = []
        for candidate in [step] if step is not None else self.steps():
            try:
                return candidate, self._read(candidate, templates)
            # Damage shows as whatever the reader of that file makes of it.
            except Exception as error:
                reasons.append(f"step {candidate}: {_first_line(error)}")
                _tell(f"the checkpoint of step {candidate} is damaged ({_first_line(error)})")
        raise InputError(
            self._directory,
            found="; ".join(reasons) or "no checkpoint",
            expected="a trained run" + (f" of {step} steps" if step is not None else ""),
            remedy="Repeat the training command with this workdir; if its checkpoints are beyond "
            "repair, delete them first.",
        )

    def discard_after(self, step):
        """Removes checkpoints newer than a step: damaged ones, whose steps will come again."""
        for newer in self.steps():
            if newer > step:
                shutil.rmtree(self._directory / str(newer))
        self._manager.reload()

    def _read(self, step, templates):
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: ocp.args.StandardRestore(
                jax.tree.map(
                    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), template
                )
            )
            for name, template in templates.items()
        }
        wanted["meta"] = ocp.args.JsonRestore()
        if self._manager is None:
            raise FileNotFoundError("no checkpoint")
        with _quiet_orbax():
            found = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        trees = {name: jax.tree.map(np.asarray, found[name]) for name in templates}
        for name, tree in trees.items():
            if checksums({name: tree})[name] != found["meta"]["checksums"][name]:
                raise ValueError(f"the checksums of {name} differ")
        return trees


def checksums(trees):
    """{name: {path of an array in the tree: its CRC-32}}."""
    return {
        name: {
            jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf).tobytes())
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for name, tree in trees.items()
    }


def _first_line(error):
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:200]}"


def _tell(message):
    print(f"warning: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _quiet_orbax():
    """Failures are told once, in a line; Orbax would add a page of traceback for each."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
