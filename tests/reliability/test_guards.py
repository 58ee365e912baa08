"""What stops a training, and how it goes on; with a step that is compiled at once."""

import os
import re
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax import files, localise, parallel, train
from caal_jax.checkpoint import Checkpoints
from caal_jax.data.phantom import phantom_dataset
from caal_jax.data.slices import SliceBank
from caal_jax.defaults import training_config
from caal_jax.errors import InputError, Interrupted
from caal_jax.workdir import read_curve

BAD_STEP = 4  # counted from 0; only with a learning rate above 1


def easy_step(config, layout):
    """A step whose result tells which images it saw, and which may find a NaN."""

    def step(state, number, part, batch):
        mean = parallel.mean_over_member(jnp.float32(batch.target).mean(), layout)
        change = 1e-6 * mean * (number + 1)
        wrong = (number == BAD_STEP) & (config.learning_rate > 1)
        bad = {
            "count": state["bad"]["count"] + wrong,
            "first": jnp.where(wrong, number, state["bad"]["first"]),
        }
        params = jax.tree.map(lambda p: p + change, state["params"])
        return {**state, "params": params, "bad": bad}, {"loss": change}

    return step


def easy_models(config, channels, members=None):
    """Members of three parameters."""
    members = jnp.arange(config.num_members) if members is None else jnp.array(members)
    key = jax.vmap(lambda member: jax.random.key_data(jax.random.key(member)))(members)
    return {"key": key, "params": {"w": jnp.outer(1.0 + members, jnp.arange(3.0))}}


@pytest.fixture(scope="module")
def dataset():
    return phantom_dataset(
        region="brain", size=32, num_train=3, num_validation=1, num_test=1, seed=3
    )


@pytest.fixture
def run(monkeypatch, dataset):
    """`run(workdir, **changes)` trains; returns how often decisions were made so far."""
    decided = []

    def decide(config, workdir, *_):
        decided.append(workdir)
        files.write_text(workdir / "decisions.json", "{}")

    monkeypatch.setattr(train, "build_step", easy_step)
    monkeypatch.setattr(train, "new_models", easy_models)
    monkeypatch.setattr(localise, "new_models", easy_models)
    monkeypatch.setattr(train, "summarise", lambda *_: "an easy network")
    monkeypatch.setattr(train, "decide", decide)

    def run(workdir, **changes):
        config = config_of(**changes)
        train.train(config, workdir, dataset)
        return len(decided)

    return run


def config_of(**changes):
    config = training_config()
    config.dataset, config.region, config.image_size, config.width = "mood", "brain", 32, 4
    config.depth, config.batch_size, config.num_steps, config.num_members = 2, 8, 8, 1
    config.log_steps, config.checkpoint_steps = 2, 3
    config.update(changes)
    return config


def steps(workdir):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.steps()


def params(workdir, **changes):
    return localise.read_members(workdir, config_of(**changes), 1)["params"]["w"]


def curve(workdir):
    return [(line["step"], line["loss"]) for line in read_curve(workdir / "metrics.jsonl")]


def strike_at(monkeypatch, call, act):
    """Calls `act` in the middle of a step: before its batch is taken."""
    real, count = train.round_batches, [0]

    def struck(*args):
        count[0] += 1
        if count[0] == call:
            act()
        return real(*args)

    monkeypatch.setattr(train, "round_batches", struck)


def test_sigterm_saves_the_step_and_the_run_goes_on(tmp_path, monkeypatch, capsys, run):
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path / "whole")
    told = capsys.readouterr().out
    assert len(re.findall(r"^first step, compiled: \d+\.\d s$", told, re.M)) == 1
    strike_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="step 5 is saved"):
        run(tmp_path / "stopped")
    assert signal.getsignal(signal.SIGTERM) == before
    assert steps(tmp_path / "stopped") == [5, 3]
    assert not (tmp_path / "stopped" / "decisions.json").exists()
    run(tmp_path / "stopped")
    assert steps(tmp_path / "stopped") == [8, 6]
    assert_array_equal(params(tmp_path / "stopped"), params(tmp_path / "whole"))
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    assert [step for step, _ in curve(tmp_path / "whole")] == [2, 3, 4, 6, 8]


def test_each_checkpoint_has_a_loss_on_held_out_cases(tmp_path, run, dataset):
    run(tmp_path, num_members=2)
    config = config_of()
    bank = train.build_bank(config, dataset.train, tmp_path)
    held_out = train.build_bank(config, dataset.validation, tmp_path, held_out_of=bank)
    assert held_out.case_ids == ("validation_00000",)
    expected = 0.0
    for number in range(4):
        batch = bank.batch(config.seed, number, config.batch_size, held_out=held_out)
        assert_array_equal(batch.target, held_out.images[batch.indices])
        expected += 1e-6 * batch.target.mean() * (config.num_steps + number + 1) / 4
    found = {
        line["step"]: line.get("validation_loss") for line in read_curve(tmp_path / "metrics.jsonl")
    }
    assert [step for step, loss in found.items() if loss] == [3, 6, 8]
    assert_allclose(found[8], [expected] * 2, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("lost", ["model", "meta"])
def test_a_damaged_only_checkpoint_is_made_again(tmp_path, monkeypatch, capsys, run, lost):
    run(tmp_path / "whole")
    strike_at(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="step 2 is saved"):
        run(tmp_path / "damaged")
    shutil.rmtree(tmp_path / "damaged" / "checkpoints" / "2" / lost)
    run(tmp_path / "damaged")
    assert "training begins anew" in "".join(capsys.readouterr())
    assert steps(tmp_path / "damaged") == [8, 6]
    assert_array_equal(params(tmp_path / "damaged"), params(tmp_path / "whole"))
    assert curve(tmp_path / "damaged") == curve(tmp_path / "whole")


def test_a_nan_stops_at_the_last_good_checkpoint_and_is_named(tmp_path, run):
    wrong = {"num_members": 2, "learning_rate": 2.0}
    named = r"in step 5 of member 0, on a batch of train_0000\d, .*--config\.skip_nonfinite=True"
    for _ in range(2):
        with pytest.raises(InputError, match=named):
            run(tmp_path, **wrong)
        assert steps(tmp_path) == [3]
        assert [step for step, _ in curve(tmp_path)] == [2, 3, 4]
    run(tmp_path, **wrong, skip_nonfinite=True)
    assert steps(tmp_path) == [8, 6]
    skipped = [line["skipped"] for line in read_curve(tmp_path / "metrics.jsonl")[3:]]
    assert skipped == [[1, 1], [1, 1]]


def test_too_little_memory_names_the_fields_to_change(tmp_path, monkeypatch, run):
    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    strike_at(monkeypatch, 2, full)
    fields = r"config\.accumulation \(now 1\).*batch_size \(8\).*image_size \(32\)"
    with pytest.raises(InputError, match="Out of memory.*" + fields):
        run(tmp_path)


def test_a_workdir_in_use_is_refused_and_a_finished_one_is_left_alone(tmp_path, run):
    with files.lock(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        run(tmp_path)
    assert run(tmp_path) == 1
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    assert run(tmp_path) == 1  # no second decision
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_members_trained_one_by_one_are_the_ensemble(tmp_path, run):
    both = {"num_members": 2}
    assert run(tmp_path / "whole", **both) == 1
    one_by_one = tmp_path / "one_by_one"
    for members in ("1", "0"):
        assert run(one_by_one, **both, members=members) == 1
        assert not (one_by_one / "decisions.json").exists()
    assert run(one_by_one, **both) == 2
    found = params(one_by_one, **both)
    assert_allclose(found, params(tmp_path / "whole", **both), atol=1e-6)
    assert_allclose(found[1] - found[0], [0, 1, 2], atol=0.1)
    assert [step for step, _ in curve(one_by_one)] == [
        step for step, _ in curve(tmp_path / "whole")
    ]
    assert all(len(loss) == 2 for _, loss in curve(one_by_one))
    # Three are the two and one more; the two are not trained again.
    before = (one_by_one / "members" / "1" / "metrics.jsonl").stat().st_mtime_ns
    assert run(one_by_one, num_members=3) == 3
    assert (one_by_one / "members" / "1" / "metrics.jsonl").stat().st_mtime_ns == before
    assert steps(one_by_one / "members" / "2") == [8, 6]
    assert all(len(loss) == 3 for _, loss in curve(one_by_one))


def test_jobs_that_train_members_of_one_run_cache_apart(tmp_path, monkeypatch, run):
    both, started = {"num_members": 2}, []

    def build(entries, *, progress, **given):
        def meanwhile(done, total):
            progress(done, total)
            if not started:
                # Another job reads, trains and ends while this one is half through its cases.
                started.append(done)
                run(tmp_path, **both, members="1")
                with pytest.raises(InputError, match="another process at work"):
                    run(tmp_path, **both, members="0")

        return SliceBank.build(entries, progress=meanwhile, max_bytes=1000, **given)  # in files

    monkeypatch.setattr(train, "SliceBank", SimpleNamespace(build=build))
    run(tmp_path, **both, members="0")
    assert started == [1]
    run(tmp_path, **both)
    run(tmp_path / "whole", **both)
    assert_allclose(params(tmp_path, **both), params(tmp_path / "whole", **both), atol=1e-6)


def test_a_killed_run_leaves_no_partial_files_for_the_next(tmp_path, run):
    (tmp_path / ".results.json.77.partial").write_text("half")
    other = files.folder(tmp_path / "members" / "9")
    (other / ".lock").write_text("")
    (other / ".results.json.78.partial").write_text("another process is at it")
    run(tmp_path)
    assert not (tmp_path / ".results.json.77.partial").exists()
    assert (other / ".results.json.78.partial").exists()
