"""Checkpoints: what is saved comes back, and damage, full disks and locked folders lose nothing."""

import contextlib
import os
import resource

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from caal_jax.checkpoint import Checkpoints
from caal_jax.errors import InputError

NOBODY = 65534

# Orbax's threads may complain, when they are collected, about a failure that was handled.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def trees(step):
    rng = np.random.default_rng(step)
    model = {"w": rng.random((2, 30, 40), np.float32), "key": np.arange(4, dtype=np.uint32)}
    return {
        "model": model,
        "optimizer": (np.int32([step, step]), {"m": rng.random((2, 5), np.float32)}),
    }


def templates():
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), trees(1))


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of the steps 1, 2 and 3, of which the last two are kept."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, (4, 7), **trees(step))
        checkpoints.finish()
    return tmp_path


def restored(folder, **options):
    with Checkpoints(folder, read_only=True) as checkpoints:
        return checkpoints.restore(**templates(), **options)


def test_what_is_saved_comes_back(saved):
    step, found = restored(saved)
    assert step == 3
    jax.tree.map(assert_array_equal, found, trees(3))
    assert restored(saved, step=2)[0] == 2
    with Checkpoints(saved, read_only=True) as checkpoints:
        assert checkpoints.steps() == [3, 2]
        assert checkpoints.members() == (4, 7)
        model_alone = checkpoints.restore(model=templates()["model"])[1]
    assert model_alone.keys() == {"model"}


def test_the_best_is_kept_beside_the_latest(tmp_path):
    losses = [0.3, 0.1, None, 0.2, 0.25]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() is None
        for step, loss in enumerate(losses, start=1):
            checkpoints.save(step, (4, 7), validation_loss=loss, **trees(step))
        checkpoints.finish()
        assert checkpoints.steps() == [5, 4, 2]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.best_step() == 2
        assert checkpoints.restore(**templates())[0] == 5
    jax.tree.map(assert_array_equal, restored(tmp_path, step=2)[1], trees(2))


def test_without_losses_the_latest_is_the_best(saved):
    with Checkpoints(saved, read_only=True) as checkpoints:
        assert checkpoints.best_step() == 3


def largest_file(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return max(paths, key=lambda path: path.stat().st_size)


def cut(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
    path = largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def drop_metadata(folder):
    (folder / "meta" / "metadata").unlink()


@pytest.mark.parametrize("damage", [cut, flip, drop_metadata])
def test_a_damaged_checkpoint_is_told_and_passed_over(saved, capsys, damage):
    damage(saved / "checkpoints" / "3")
    step, found = restored(saved)
    assert step == 2
    jax.tree.map(assert_array_equal, found, trees(2))
    assert "the checkpoint of step 3 is damaged" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"step 3: .*expected a trained run of 3 steps"):
        restored(saved, step=3)
    with Checkpoints(saved) as checkpoints:
        checkpoints.discard_after(2)
        assert checkpoints.steps() == [2]
        checkpoints.save(3, (4, 7), **trees(3))
        checkpoints.finish()
    assert restored(saved)[0] == 3


def test_without_a_readable_checkpoint_all_reasons_are_told(saved, tmp_path):
    for step in (2, 3):
        cut(saved / "checkpoints" / str(step))
    with pytest.raises(InputError, match=r"step 3: .*step 2: .*Repeat the training command"):
        restored(saved)
    assert len(list((saved / "checkpoints").iterdir())) == 2  # nothing is deleted
    with pytest.raises(InputError, match="found no checkpoint"):
        restored(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@contextlib.contextmanager
def full_disk(_):
    """No file may grow beyond 1 KiB: the kernel refuses, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def forbidden(folder):
    """The folder cannot be written to; root, who always can, is somebody else meanwhile."""
    folder.chmod(0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.mark.parametrize("fault", [full_disk, forbidden])
def test_a_save_that_fails_leaves_the_last_one_and_may_be_repeated(saved, capfd, fault):
    with Checkpoints(saved) as checkpoints:
        with fault(saved / "checkpoints"):
            checkpoints.save(4, (4, 7), **trees(4))
            checkpoints.wait()
        assert checkpoints.steps() == [3, 2]
        told = capfd.readouterr().err
        assert "step 4 could not be saved" in told
        assert "step 3 stays" in told
        assert told.count("\n") == 1  # a line, not a page
        with pytest.raises(InputError, match="goes on from step 3"):
            checkpoints.finish()
        checkpoints.save(5, (4, 7), **trees(5))
        checkpoints.finish()
    assert {path.name for path in (saved / "checkpoints").iterdir()} == {"3", "5"}
    step, found = restored(saved)
    assert step == 5
    jax.tree.map(assert_array_equal, found, trees(5))
