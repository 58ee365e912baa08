"""From a download through records into a training that is stopped, goes on, and ends the same."""

import os
import signal

import jax
import jax.numpy as jnp
import layouts
import pytest
from numpy.testing import assert_array_equal

from caal_jax import files, localise, train
from caal_jax.checkpoint import Checkpoints
from caal_jax.data import load_dataset, prepare
from caal_jax.data.public import jsrt
from caal_jax.data.slices import SliceBank
from caal_jax.defaults import training_config
from caal_jax.errors import Interrupted
from caal_jax.localise import read_members
from caal_jax.localisers import Localiser
from caal_jax.workdir import read_curve

SIDE = 64


def brightness(config):
    """The smallest localiser: one weight on the image."""

    def loss(variables, key, batch):
        error = jnp.mean((variables["weight"] * batch.image - batch.label) ** 2)
        return error, {"mean": jnp.mean(batch.image)}

    def sample(variables, key, images, num_samples):
        return jax.nn.sigmoid(variables["weight"] * images)[None]

    return Localiser(init=lambda key, image: {"weight": jnp.float32(1)}, loss=loss, sample=sample)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Small films, and a network and decisions that are made at once."""
    monkeypatch.setattr(jsrt, "SIDE", SIDE)
    for module in (train, localise):
        monkeypatch.setattr(module, "build_localiser", brightness)
    monkeypatch.setattr(
        train,
        "decide",
        lambda config, workdir, *_: files.write_text(workdir / "decisions.json", "{}"),
    )
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_a_stopped_training_on_records_ends_as_one_in_memory(tmp_path, monkeypatch, capsys):
    folder = prepare.prepare("jsrt", layouts.jsrt(tmp_path / "raw", SIDE), tmp_path / "records")
    config = training_config()
    config.dataset, config.data_dir = "jsrt", str(folder)
    config.image_size, config.num_members, config.batch_size, config.num_patches = 32, 1, 8, 1
    config.num_steps, config.warmup_steps, config.log_steps, config.checkpoint_steps = 4, 0, 1, 2
    config.task, config.source_jitter = "cutpaste", False
    dataset = load_dataset(config)
    train.train(config, tmp_path / "memory", dataset)
    assert "read from records" not in capsys.readouterr().out

    monkeypatch.setitem(SliceBank.build.__func__.__kwdefaults__, "max_bytes", 10)
    read = train.round_batches
    with monkeypatch.context() as patch:

        def struck(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            return read(*args)

        patch.setattr(train, "round_batches", struck)
        with pytest.raises(Interrupted, match="step 1 is saved"):
            train.train(config, tmp_path / "stream", dataset)
    train.train(config, tmp_path / "stream", dataset)
    assert "4 slices of 32 x 32 x 1, read from records" in capsys.readouterr().out

    with Checkpoints(tmp_path / "stream", read_only=True) as checkpoints:
        assert checkpoints.steps() == [4, 2]
    memory, stream = (read_members(tmp_path / name, config, 1) for name in ("memory", "stream"))
    assert_array_equal(memory["params"]["weight"], stream["params"]["weight"])
    assert memory["params"]["weight"] != 1
    curves = [
        [(line["step"], line["loss"]) for line in read_curve(tmp_path / name / "metrics.jsonl")]
        for name in ("memory", "stream")
    ]
    assert curves[0] == curves[1]
