"""Runs in processes of their own that are killed, one fault after the other, and go on."""

import socket
import time

import faults
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.checkpoint import Checkpoints
from caal_jax.localise import Decisions, new_models
from caal_jax.workdir import read_curve

KILLED = -9


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    return faults.Children(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def unbroken(children, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    assert children.run(workdir) == 0
    return workdir


def test_a_run_killed_everywhere_ends_as_if_nothing_happened(children, unbroken):
    workdir = unbroken.parent / "killed"
    assert children.run(workdir, strike=("save", 3)) == KILLED
    # The unfinished save is not taken for a checkpoint, and the newest whole one is damaged now.
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps() == [10, 5]
    faults.damage(workdir, "truncated", np.random.default_rng(0))
    assert children.run(workdir, strike=("evaluation", 2)) == KILLED
    log = (workdir.parent / "killed.log0").read_text()
    assert "step 10 is damaged" in log
    assert "from step 5" in log
    assert children.run(workdir) == 0
    expected = faults.outcome(unbroken)
    steps = {*range(2, 21, 2), 5, 15}  # every second one, and those of checkpoints
    assert [line["step"] for line in expected["curve"]] == sorted(steps)
    assert faults.same(faults.outcome(workdir), expected)


def two_processes(children, workdir, strikes=(None, None), **changes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {"evaluates": False, "devices": 4, "address": address, "processes": 2}
    return [
        children.start(workdir, strike=strike, number=number, changes=changes, **together)
        for number, strike in enumerate(strikes)
    ]


def trained(workdir, **changes):
    """The members after the last step."""
    template = jax.eval_shape(lambda: new_models(faults.tiny_config(**changes), 1))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(step=faults.STEPS, model=template)[1]["model"]


def test_two_processes_train_an_ensemble_as_one_device_does(children, tmp_path):
    # Six of the eight devices, two for each member: those of the second are in both processes.
    changes = {"num_members": 3, "image_size": 16, "depth": 1}
    together = two_processes(children, tmp_path / "two", **changes)
    assert children.run(tmp_path / "one", changes=changes, evaluates=False) == 0
    for process in together:
        process.join()
    assert [process.exitcode for process in together] == [0, 0]
    told = (tmp_path / "two.log0").read_text()
    assert "3 member(s) on 6 cpu device(s), 2 devices per member; 2 device(s) idle" in told
    models = [trained(tmp_path / name, **changes) for name in ("one", "two")]
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), *models)
    one, two = (
        Decisions.from_json((tmp_path / name / "decisions.json").read_text())
        for name in ("one", "two")
    )
    assert_allclose(two.healthy_scores, one.healthy_scores, atol=1e-7)
    assert two.threshold == pytest.approx(one.threshold, abs=1e-7)
    assert_allclose(two.pixel, one.pixel, atol=1e-6)
    assert_allclose(two.image, one.image, atol=1e-6)


def test_two_processes_train_as_one_and_notice_a_death(children, unbroken):
    workdir = unbroken.parent / "two"
    first, second = two_processes(children, workdir, strikes=(None, ("step", 12)))
    second.join()
    assert second.exitcode == KILLED
    noticed = time.monotonic()
    first.join(60)
    assert first.exitcode is not None, f"still waiting after {time.monotonic() - noticed:.0f} s"
    assert first.exitcode != 0
    told = (workdir.parent / "two.log0").read_text()
    assert "another process of this run" in told or "another task died" in told

    again = two_processes(children, workdir)
    for process in again:
        process.join()
    assert [process.exitcode for process in again] == [0, 0]
    told = (workdir.parent / "two.log0").read_text()
    assert "8 devices per member, from step" in told
    models = [trained(run) for run in (unbroken, workdir)]
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), *models)
    curves = [read_curve(run / "metrics.jsonl") for run in (unbroken, workdir)]
    steps = [[line["step"] for line in curve] for curve in curves]
    assert_array_equal(*steps)
    losses = [[line["loss"] for line in curve] for curve in curves]
    assert_allclose(*losses, atol=2e-6)
