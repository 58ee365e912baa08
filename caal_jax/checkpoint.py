"""Saves and restores the stacked state of an ensemble with Orbax, whatever the devices."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from caal_jax.errors import InputError


class Checkpoints:
    """The newest checkpoints under `workdir/checkpoints`; use as a context manager.

    A checkpoint holds named trees of NumPy arrays stacked over members, so a run may resume on
    another number of devices, and prediction reads the "model" tree alone. Saving is asynchronous
    after the copy to host; leaving the context waits for it.
    """

    def __init__(self, workdir, *, keep=2):
        self._directory = Path(workdir).resolve() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    def latest_step(self):
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step, **trees):
        saves = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(step, args=ocp.args.Composite(**saves))

    def restore(self, **templates):
        """The newest trees of these names as NumPy; templates: what `jax.eval_shape` returns."""
        step = self.latest_step()
        if step is None:
            raise InputError(
                self._directory,
                found="no checkpoint",
                expected="a trained run",
                remedy="Train first: python -m caal_jax.main --mode=train --workdir=...",
            )
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: ocp.args.StandardRestore(
                jax.tree.map(
                    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), template
                )
            )
            for name, template in templates.items()
        }
        found = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        return {name: jax.tree.map(np.asarray, found[name]) for name in templates}
