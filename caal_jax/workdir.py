"""What a workdir holds: the config it belongs to, its parts, and the training curve.

A part is a folder with checkpoints of members that were trained together. The workdir itself is one
when its whole ensemble was; members that were trained alone (`config.members`) or added to a
finished run have a folder `members/<numbers>` each. Member m is the same in every part.
"""

import contextlib
import json
import math
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from caal_jax import files
from caal_jax.checkpoint import Checkpoints
from caal_jax.errors import InputError
from caal_jax.tracking import open_trackers

# What may differ when a run goes on; num_members may only grow.
MAY_CHANGE = ("members", "num_members", "skip_nonfinite", "tracking")
# What may differ when a finished run is evaluated again.
MAY_CHANGE_LATER = ("members", "skip_nonfinite", "tracking", "num_resamples", "data_dir")


class Part(NamedTuple):
    """Members that are trained together; folder: relative to the workdir."""

    folder: str
    members: tuple[int, ...]


def claim(config, workdir):
    """Writes config.json into a new workdir, or checks that an old one goes on with this config.

    A workdir in which nothing was trained yet takes any config. Raises `InputError` with the
    differing fields, or the differing version where training would go on.
    """
    path = files.folder(workdir) / "config.json"
    wanted = {**json.loads(config.to_json()), "members": ""}
    found = read_json(path) if path.is_file() else None
    if found is not None and known_parts(workdir):
        _check_config(path, found, wanted, MAY_CHANGE)
        _check_version(workdir)
        if wanted["num_members"] != found["num_members"]:
            (workdir / "decisions.json").unlink(missing_ok=True)  # they were fitted to fewer
    if wanted != found:
        files.write_text(path, json.dumps(wanted, indent=1))


def check_config(config, workdir):
    """Raises `InputError` if a workdir is another config's, so that none is evaluated as if it were
    this one. Writes nothing."""
    path = Path(workdir) / "config.json"
    if path.is_file():
        found, wanted = read_json(path), json.loads(config.to_json())
        # Runs of older versions lack some fields.
        known = {key: found.get(key, value) for key, value in wanted.items()}
        _check_config(path, known, wanted, MAY_CHANGE_LATER)


def _check_config(path, found, wanted, may_change):
    differing = [
        f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key) and key not in may_change
    ]
    fewer = wanted["num_members"] < found["num_members"] and "num_members" in may_change
    if fewer:
        differing.append(f"num_members: {found['num_members']} there, {wanted['num_members']} now")
    if differing:
        raise InputError(
            path,
            found="a run of another config (" + "; ".join(differing) + ")",
            expected="the same config",
            remedy="Pass another --workdir, or the config that this one was made with.",
        )


def _check_version(workdir):
    """A run half trained by one version and half by another would be neither's."""
    path, ours = workdir / "training.json", version("caal_jax")
    if not path.is_file() or (workdir / "decisions.json").is_file():
        return
    theirs = read_json(path).get("version")
    if theirs != ours:
        raise InputError(
            path,
            found=f"an unfinished run of caal_jax {theirs}",
            expected=f"caal_jax {ours}, to resume",
            remedy="Install the version that began it, or pass another --workdir.",
        )


def read_json(path):
    """The object in a JSON file. Raises `InputError` where it is none."""
    try:
        found = json.loads(Path(path).read_text())
        if isinstance(found, dict):
            return found
        reason = f"a {type(found).__name__}"
    except (OSError, ValueError) as error:
        reason = f"something unreadable ({error})"
    raise InputError(
        path, found=reason, expected="an object in JSON", remedy="Restore the file or delete it."
    )


def member_numbers(text, num_members):
    """The members that `config.members` names, as in "2" or "0-2,4"; "" means all."""
    numbers = []
    for piece in text.split(",") if text else [f"0-{num_members - 1}"]:
        ends = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", piece)
        if ends:
            numbers += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
        if not ends or not numbers or numbers != sorted(set(numbers)) or numbers[-1] >= num_members:
            raise InputError(
                "config.members",
                found=repr(text),
                expected=f"ascending numbers from 0 to {num_members - 1}, as in 2 or 0-2,4",
                remedy="Correct it, or raise config.num_members.",
            )
    return tuple(numbers)


def known_parts(workdir):
    """The parts that have checkpoints."""
    folders = [workdir, *sorted((workdir / "members").glob("*/"))]
    found = []
    for folder in folders:
        if (folder / "checkpoints").is_dir():
            with Checkpoints(folder, read_only=True) as checkpoints:
                members = checkpoints.members()
            if members:
                found.append(Part(str(folder.relative_to(workdir)), members))
    return found


def parts_to_train(config, workdir):
    """The parts that a run has to train or complete, in order."""
    known = known_parts(workdir)
    holders = {member: part.folder for part in known for member in part.members}
    chosen = member_numbers(config.members, config.num_members)
    if config.members:
        part = Part(f"members/{config.members}", chosen)
        taken = {m: holders[m] for m in chosen if holders.get(m, part.folder) != part.folder}
        if taken:
            raise InputError(
                "config.members",
                found=f"members {sorted(taken)} in {sorted(set(taken.values()))} already",
                expected="members that were not trained elsewhere",
                remedy="Leave them out; without config.members the rest is trained.",
            )
        return [part]
    missing = tuple(m for m in chosen if m not in holders)
    if missing and not known:
        return [Part(".", missing)]
    if missing:
        known.append(Part("members/" + ",".join(map(str, missing)), missing))
    return known


def restore_members(workdir, config, template):
    """The trained model of all members, stacked: a tree of NumPy arrays.

    template: of the members with these numbers, as `jax.eval_shape` returns it. Of each part the
    last step, or with `config.checkpoint` "best" that of its lowest validation loss. Raises
    `InputError` unless every member is trained to the end.
    """
    workdir = Path(workdir)
    trees, order = [], []
    for part in known_parts(workdir):
        with Checkpoints(workdir / part.folder, read_only=True) as checkpoints:
            step = config.num_steps
            if config.get("checkpoint") == "best" and checkpoints.latest_step() == step:
                step = checkpoints.best_step()
            _, found = checkpoints.restore(step=step, model=template(part.members))
        trees.append(found["model"])
        order += part.members
    if sorted(order) != list(range(config.num_members)):
        raise InputError(
            workdir,
            found=f"members {sorted(order)}",
            expected=f"{config.num_members} trained members",
            remedy="Run python -m caal_jax.main with this --workdir to train the rest.",
        )
    return jax.tree.map(lambda *rows: np.concatenate(rows)[np.argsort(order)], *trees)


class Curve:
    """metrics.jsonl, TensorBoard and other trackers of one part; use as a context manager.

    Steps after `start`, where training goes on, were lost with what came after the checkpoint and
    will come again: their old lines are dropped. A line that cannot be written (a full disk) is
    kept and written with the next.
    """

    def __init__(self, folder, num_members, start, config):
        self._path = files.folder(folder) / "metrics.jsonl"
        kept = [line for line in read_curve(self._path) if line["step"] <= start]
        self._before = kept[-1]["seconds"] if kept else 0.0
        text = "".join(json.dumps(_first_members(line, num_members)) + "\n" for line in kept)
        files.write_text(self._path, text)
        self._size, self._waiting = len(text), []
        self._trackers = open_trackers(self._path.parent, config, start)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for tracker in self._trackers:
            tracker.close()

    def write(self, step, rate, seconds, values):
        """Adds a step; values: {name: (members,)}, seconds: since this process began."""
        line = {"step": step, "learning_rate": rate, "seconds": round(self._before + seconds, 3)}
        numbers = {"learning_rate": rate}
        for name, value in values.items():
            # JSON has no NaN and no infinity; a skipped step has no loss.
            line[name] = [v if math.isfinite(v) else None for v in np.round(value, 7).tolist()]
            numbers |= {f"{name}/member_{m}": float(one) for m, one in enumerate(value)}
        for tracker in self._trackers:
            tracker.add(step, numbers)
        self._waiting.append(json.dumps(line))
        text = "".join(f"{line}\n" for line in self._waiting)
        try:
            files.append(self._path, text, at=self._size)
        except OSError as error:
            print(f"warning: {self._path}: {error}; trying again", file=sys.stderr, flush=True)
        else:
            self._size, self._waiting = self._size + len(text), []

    def finish(self):
        """Raises `InputError` if lines are still waiting."""
        if self._waiting:
            raise InputError(
                self._path,
                found=f"no room for {len(self._waiting)} lines",
                expected="a file that can be written to",
                remedy="Make room, then repeat the command.",
            )


def read_curve(path):
    """The whole lines of a metrics.jsonl, as dicts."""
    found = []
    for line in files.whole_lines(path):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _first_members(line, count):
    """A line without the members that `join_curves` added."""
    return {k: v[:count] if isinstance(v, list) else v for k, v in line.items()}


def join_curves(workdir, parts):
    """Writes the workdir's metrics.jsonl from those of its parts, with members in order."""
    if [part.folder for part in parts] == ["."]:
        return
    curves = {
        part: {
            line["step"]: _first_members(line, len(part.members))
            for line in read_curve(workdir / part.folder / "metrics.jsonl")
        }
        for part in parts
    }
    order = np.argsort([member for part in parts for member in part.members])
    lines = []
    for step in sorted(set.intersection(*map(set, curves.values()))):
        rows = [curves[part][step] for part in parts]
        line = dict(rows[0])
        for name, value in rows[0].items():
            if isinstance(value, list):
                joined = [one for row in rows for one in row[name]]
                line[name] = [joined[i] for i in order]
        line["seconds"] = round(sum(row["seconds"] for row in rows), 3)
        lines.append(json.dumps(line))
    files.write_text(workdir / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
