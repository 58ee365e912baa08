"""The binary's own part: flags, where results go, and the cache of compiled programs."""

import json
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from caal_jax.defaults import training_config
from caal_jax.main import accept_json, default_workdir
from caal_jax.parallel import cache_programs

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def parse(monkeypatch):
    def parse(*arguments):
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        values(accept_json(sys.argv))
        return values

    return parse


def test_the_config_of_a_run_is_a_config_and_runs_no_code(tmp_path, parse):
    path = tmp_path / "some_run" / "config.json"
    path.parent.mkdir()
    fields = {**json.loads(training_config().to_json()), "seed": 5, "task": "fpi"}
    path.write_text(json.dumps(fields))
    values = parse(f"--config={path}", "--config.seed=7")
    assert (values.config.seed, values.config.task) == (7, "fpi")
    assert default_workdir(values["config"].config_filename) == Path("runs/some_run")
    path.write_text("raise SystemExit('code was run')")
    with pytest.raises(flags.IllegalFlagValueError, match="unreadable"):
        parse(f"--config={path}")


def test_a_python_config_is_left_as_it_is(parse):
    config = Path(__file__).parents[1] / "configs" / "mood.py"
    values = parse(f"--config={config}", "--config.num_steps=3")
    assert values.config.num_steps == 3
    assert default_workdir(values["config"].config_filename) == Path("runs/mood")


def test_programs_are_cached_where_the_user_says(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        cache_programs()
        assert jax.config.jax_compilation_cache_dir == before  # a choice is kept
        jax.config.update("jax_compilation_cache_dir", None)
        cache_programs()
        folder = tmp_path / "caal_jax" / "programs"
        assert jax.config.jax_compilation_cache_dir == str(folder)
        assert folder.is_dir()
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
        cache_programs()  # no folder can be made there
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
