"""Which task makes which batch: one task, a weighted mixture, or a schedule of mixtures."""

import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.errors import InputError

EXPECTED = "a task, a mixture such as 'fpi*2+nsa', or a schedule such as 'cutpaste,500@fpi*2+nsa'"


class Mixture(NamedTuple):
    """names: the T tasks that occur. starts: (S,) first steps of the stages, the first is 0.
    shares: (S, T), each stage's probabilities."""

    names: tuple[str, ...]
    starts: np.ndarray
    shares: np.ndarray


def read_mixture(text, known):
    """A `Mixture` from a config's words.

    text: stages separated by commas, each "STEP@MIXTURE" (the first without "STEP@"); a mixture is
    task names joined by "+", each with an optional "*WEIGHT". known: the names that may occur.
    Raises: InputError for anything else.
    """

    def reject(found):
        raise InputError(
            "config.task",
            found=found,
            expected=f"{EXPECTED}; tasks: {', '.join(known)}",
            remedy="Correct it.",
        )

    starts, stages = [], []
    for number, stage in enumerate(text.replace(" ", "").split(",")):
        step, at, parts = stage.rpartition("@")
        if bool(at) != bool(number) or (at and not step.isdecimal()):
            reject(f"stage {stage!r} of {text!r}")
        starts.append(int(step) if at else 0)
        weights = {}
        for part in parts.split("+"):
            match = re.fullmatch(r"(\w+)(?:\*(\d+\.?\d*|\.\d+))?", part)
            if not match or match[1] not in known:
                reject(f"{part!r} in {text!r}")
            weights[match[1]] = weights.get(match[1], 0.0) + float(match[2] or 1)
        if not sum(weights.values()):
            reject(f"no weight above 0 in {stage!r}")
        stages.append(weights)
    if any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        reject(f"steps {starts} in {text!r}")
    names = tuple(name for name in known if any(name in stage for stage in stages))
    shares = np.array([[stage.get(name, 0.0) for name in names] for stage in stages])
    shares /= shares.sum(1, keepdims=True)
    return Mixture(names, np.array(starts), shares)


def pick_task(key, mixture, step):
    """The index into `mixture.names` of the task for one step; the same key gives the same."""
    stage = jnp.sum(jnp.asarray(mixture.starts) <= jnp.asarray(step).astype(jnp.int32)) - 1
    # Summed in float64: rounding must not leave a share to a task that has none.
    limits = jnp.asarray(np.cumsum(mixture.shares, axis=1), jnp.float32)[stage]
    return jnp.sum(limits[:-1] <= jax.random.uniform(key))
