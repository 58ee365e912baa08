import importlib.util
import json
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from caal_jax.defaults import training_config, when_given
from caal_jax.localise import build_prepare, new_models
from caal_jax.train import build_corrupt

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
# What outside scripts set on the command line of every config.
PUBLIC = {
    "seed": int,
    "data_dir": str,
    "image_size": int,
    "batch_size": int,
    "num_steps": int,
    "num_members": int,
    "task": str,
    "equalise": str,
    "localiser": str,
    "learning_rate": float,
}


def load(name, *options):
    """A config with options set and locked as on the binary's command line."""
    (path,) = [path for path in CONFIGS if path.stem == name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    argv = ["main", *(f"--config.{option}" for option in options)]
    values = flags.FlagValues()
    flag = config_flags.DEFINE_config_dict(
        "config", module.get_config(), flag_values=values, sys_argv=argv
    )
    values(argv)
    return flag.value


@pytest.fixture(params=[path.stem for path in CONFIGS])
def name(request):
    return request.param


def test_the_configs_are_found():
    assert {"mood", "busi", "lgg", "folder"} <= {path.stem for path in CONFIGS}


def test_public_fields_are_there_and_can_be_set(name):
    config = load(name)
    assert {field: type(config[field]) for field in PUBLIC} == PUBLIC
    assert set(training_config()) <= set(config)
    assert config.data_dir == ""
    config = load(name, "num_members=7", "num_steps=20", "learning_rate=0.5", "data_dir=/data")
    assert (config.num_members, config.num_steps) == (7, 20)
    assert (config.learning_rate, config.data_dir) == (0.5, "/data")


def test_only_the_dataset_named_after_the_file_is_read(name):
    assert load(name).dataset == {"study_phantom": "mood"}.get(name, name.removeprefix("study_"))


def test_a_mistyped_field_is_refused_with_the_right_one(name):
    with pytest.raises(AttributeError, match=r'(?s)num_step\b.*Did you mean "num_steps"'):
        load(name, "num_step=3")
    with pytest.raises(AttributeError, match=r'Did you mean "num_members"'):
        load(name).num_member = 3


def test_json_round_trip(name):
    for options in ((), ("data_dir=/data", "num_steps=20")):
        config = load(name, *options)
        told = json.loads(config.to_json())
        again = ConfigDict(told)
        assert again.to_dict() == config.to_dict()
        assert json.loads(again.to_json()) == told


@pytest.mark.parametrize("options", [(), ("data_dir=/data",)])
def test_what_a_config_names_can_be_built(name, options):
    config = load(name, *options)
    build_prepare(config)
    build_corrupt(config)
    models = jax.eval_shape(lambda: new_models(config, 1))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(models)} == {config.num_members}


def test_mood_is_smaller_on_the_phantom():
    phantom, real = load("mood"), load("mood", "data_dir=/data/mood")
    for field in ("image_size", "num_steps"):
        assert phantom[field] < real[field]
    changed = {field for field in phantom if phantom[field] != real[field]}
    assert not changed & {"dataset", "region", "seed", "batch_size"}
    for field in changed - {"data_dir"}:
        # A field set by hand wins, in any order.
        by_hand = f"{field}={phantom[field]}"
        for options in ((by_hand, "data_dir=/data"), ("data_dir=/data", by_hand)):
            assert load("mood", *options)[field] == phantom[field]


def test_a_value_that_follows_another_field():
    config = ConfigDict({"data_dir": "", "size": 0})
    config.size = when_given(config.get_ref("data_dir"), 256, 64)
    assert config.size == 64
    assert json.loads(config.to_json())["size"] == 64
    config.data_dir = "/data"
    assert config.size == 256
    assert json.loads(config.to_json())["size"] == 256
    config.size = 8
    assert config.size == 8


def test_configs_do_not_share_their_values():
    steps = load("mood").num_steps
    load("mood", "num_steps=3")
    assert load("mood").num_steps == steps != 3
