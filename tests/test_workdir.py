"""What a workdir holds: whose it is, which members are where, and one training curve."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from caal_jax import workdir as workdirs
from caal_jax.checkpoint import Checkpoints
from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.json_config import read_config
from caal_jax.workdir import (
    Curve,
    Part,
    check_config,
    claim,
    join_curves,
    member_numbers,
    parts_to_train,
)


def config_of(**changes):
    config = training_config()
    config.num_steps = 6
    config.update(changes)
    return config


def template(members):
    return {"w": np.zeros((len(members), 3), np.float32)}


def train_part(folder, members, step=6):
    """A checkpoint in which every member's parameters are its number."""
    model = {"w": np.repeat(np.float32(members)[:, None], 3, axis=1)}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(step, members, model=model)
        checkpoints.finish()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", (0, 1, 2, 3, 4)), ("2", (2,)), ("0-2", (0, 1, 2)), ("0,3-4", (0, 3, 4))],
)
def test_member_numbers(text, expected):
    assert member_numbers(text, 5) == expected


@pytest.mark.parametrize(
    "text", ["5", "a", "1-", "2-1", "1,1", "3,2", "-1", "1/../2", " 1", "0-99"]
)
def test_wrong_member_numbers_are_refused(text):
    with pytest.raises(InputError, match=r"config\.members"):
        member_numbers(text, 5)


def test_members_are_trained_once_and_joined_in_order(tmp_path):
    config = config_of(num_members=3)
    assert parts_to_train(config, tmp_path) == [Part(".", (0, 1, 2))]
    assert parts_to_train(config_of(members="0,2"), tmp_path) == [Part("members/0,2", (0, 2))]
    train_part(tmp_path / "members" / "0,2", (0, 2))
    wanted = [Part("members/0,2", (0, 2)), Part("members/1", (1,))]
    assert parts_to_train(config, tmp_path) == wanted
    with pytest.raises(InputError, match=r"found members \[0, 2\]; expected 3 trained"):
        workdirs.restore_members(tmp_path, config, template)
    with pytest.raises(InputError, match=r"members \[2\] in \['members/0,2'\]"):
        parts_to_train(config_of(members="1-2"), tmp_path)
    train_part(tmp_path / "members" / "1", (1,))
    found = workdirs.restore_members(tmp_path, config, template)
    assert_array_equal(found["w"][:, 0], [0, 1, 2])


def test_the_best_checkpoint_is_taken_on_demand(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, loss in ((2, 0.1), (4, 0.3), (6, 0.2)):
            model = {"w": np.full((2, 3), step, np.float32)}
            checkpoints.save(step, (0, 1), validation_loss=loss, model=model)
        checkpoints.finish()
    for which, step in (("last", 6), ("best", 2)):
        config = config_of(num_members=2, checkpoint=which)
        found = workdirs.restore_members(tmp_path, config, template)
        assert_array_equal(found["w"], np.full((2, 3), step))
    with pytest.raises(InputError, match="a trained run of 8 steps"):
        workdirs.restore_members(
            tmp_path, config_of(num_members=2, num_steps=8, checkpoint="best"), template
        )


def test_a_run_that_grows_keeps_its_members(tmp_path):
    train_part(tmp_path, (0, 1))
    config = config_of(num_members=4)
    assert parts_to_train(config, tmp_path) == [Part(".", (0, 1)), Part("members/2,3", (2, 3))]
    train_part(tmp_path / "members" / "2,3", (2, 3))
    found = workdirs.restore_members(tmp_path, config, template)
    assert_array_equal(found["w"][:, 2], [0, 1, 2, 3])


def test_members_that_are_not_trained_to_the_end_do_not_predict(tmp_path):
    train_part(tmp_path, (0,), step=4)
    with pytest.raises(InputError, match="expected a trained run of 6 steps"):
        workdirs.restore_members(tmp_path, config_of(num_members=1), template)


def test_a_workdir_belongs_to_its_config_once_trained(tmp_path):
    claim(config_of(learning_rate=0.1), tmp_path)
    claim(config_of(num_members=2), tmp_path)  # nothing is lost yet
    train_part(tmp_path, (0, 1))
    (tmp_path / "decisions.json").write_text("{}")
    claim(config_of(num_members=2, members="0", skip_nonfinite=True), tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    assert (found["members"], found["skip_nonfinite"]) == ("", True)
    assert (tmp_path / "decisions.json").exists()
    with pytest.raises(InputError, match=r"batch_size: 16 there, 5 now; seed: 0 there, 1 now"):
        claim(config_of(num_members=2, seed=1, batch_size=5), tmp_path)
    claim(config_of(num_members=3), tmp_path)
    assert not (tmp_path / "decisions.json").exists()  # they were fitted to two members
    with pytest.raises(InputError, match="num_members: 3 there, 2 now"):
        claim(config_of(num_members=2), tmp_path)


def test_a_run_is_evaluated_as_what_it_is(tmp_path):
    check_config(config_of(), tmp_path)  # nothing is there; loading the run says so
    claim(config_of(), tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    del old["augment"]
    path.write_text(json.dumps(old))
    written = path.read_bytes()
    check_config(config_of(num_resamples=7, data_dir="moved", num_members=3), tmp_path)
    for field, value in {"task": "nsa", "num_members": 9, "score_fraction": 0.5}.items():
        with pytest.raises(InputError, match=f"another config .{field}: .* now"):
            check_config(config_of(**{field: value}), tmp_path)
    assert path.read_bytes() == written


def test_another_version_does_not_go_on_but_may_use_a_finished_run(tmp_path):
    config = config_of()
    claim(config, tmp_path)
    train_part(tmp_path, (0, 1, 2))
    (tmp_path / "training.json").write_text('{"version": "0.0.1"}')
    with pytest.raises(InputError, match=r"unfinished run of caal_jax 0\.0\.1"):
        claim(config, tmp_path)
    (tmp_path / "decisions.json").write_text("{}")
    claim(config, tmp_path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_curve(folder, steps, members, start=0):
    with Curve(folder, len(members), start, config_of()) as curve:
        for step in steps:
            values = {"loss": np.float32([10 * member + step for member in members])}
            curve.write(step, rate=0.5, seconds=1.0, values=values)
        curve.finish()
    return lines(folder / "metrics.jsonl")


def test_a_curve_that_goes_on_has_no_gap_and_no_line_twice(tmp_path):
    write_curve(tmp_path, (2, 4, 6), (0, 1))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 7, "lo')  # killed while it was written
    found = write_curve(tmp_path, (6, 8), (0, 1), start=5)
    assert [line["step"] for line in found] == [2, 4, 6, 8]
    assert [line["loss"] for line in found] == [[2, 12], [4, 14], [6, 16], [8, 18]]
    assert found[-1]["seconds"] == 2.0


def test_curves_of_parts_become_one(tmp_path):
    write_curve(tmp_path, (2, 4), (0, 1))
    write_curve(tmp_path / "members" / "3", (2, 4), (3,))
    write_curve(tmp_path / "members" / "2", (2, 4), (2,))
    parts = [Part(".", (0, 1)), Part("members/3", (3,)), Part("members/2", (2,))]
    for _ in range(2):  # a second time changes nothing
        join_curves(tmp_path, parts)
        found = lines(tmp_path / "metrics.jsonl")
        assert [line["loss"] for line in found] == [[2, 12, 22, 32], [4, 14, 24, 34]]
    # Its own part goes on from it all the same.
    assert write_curve(tmp_path, (4,), (0, 1), start=2)[0]["loss"] == [2, 12]


def test_lines_wait_for_room(tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with Curve(tmp_path, 1, 0, config_of()) as curve:
        curve.write(1, 0.5, 1.0, {"loss": np.float32([1])})
        with monkeypatch.context() as patch:
            patch.setattr(workdirs.files.os, "fsync", full)
            curve.write(2, 0.5, 1.0, {"loss": np.float32([2])})
            with pytest.raises(InputError, match="no room for 1 lines"):
                curve.finish()
        curve.write(3, 0.5, 1.0, {"loss": np.float32([np.nan])})
        curve.write(4, 0.5, 1.0, {"loss": np.float32([np.inf])})
        curve.finish()
    assert "No space left" in capsys.readouterr().err
    found = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert [line["loss"] for line in found[2:]] == [[None], [None]]


def test_a_run_s_json_is_a_config_again(tmp_path):
    path = tmp_path / "config.json"
    config = config_of(learning_rate=0.1, task="fpi")
    config.region = "brain"
    path.write_text(config.to_json())
    assert read_config(str(path)).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "a list"),
        ("{", "unreadable"),
        ('{"num_steps": "many"}', "does not fit"),
        (" " * 2**21, "more than 1048576 bytes"),
    ],
)
def test_other_json_is_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(str(path))
