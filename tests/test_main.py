"""The binary's own part: flags, where results go, and the cache of compiled programs."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from caal_jax import main as binary
from caal_jax.defaults import training_config
from caal_jax.errors import InputError, Interrupted
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


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (InputError("x.png", found="a", expected="b", remedy="Do c."), 1, "error: x.png: found a"),
        (Interrupted("saved"), 143, "saved"),
        (OSError(errno.ENOSPC, "No space left"), 1, "No space left. Mend this, then repeat"),
        (ValueError("a bug"), 1, "Traceback"),
    ],
)
def test_an_error_ends_the_process_with_a_status_and_is_told_once(
    monkeypatch, capsys, error, status, told
):
    def fail(*_):
        raise error

    left = []
    given = SimpleNamespace(workdir="runs/x", config=None, mode="train")
    monkeypatch.setattr(binary, "flags", SimpleNamespace(FLAGS=given))
    monkeypatch.setattr(binary, "train_and_evaluate", fail)
    for name in ("cache_programs", "keep_memory", "start"):
        monkeypatch.setattr(binary.parallel, name, lambda: None)
    monkeypatch.setattr(binary.parallel, "leave", left.append)
    binary.main(["main"])
    assert left == [status]
    said = capsys.readouterr().err
    assert told in said
    assert ("Traceback" in said) == (told == "Traceback")


@pytest.mark.parametrize(
    "arguments",
    [
        ["caal_jax.main", "--config=configs/folder.py", "--config.data_dir=gone", "--workdir=DIR"],
        ["caal_jax.predict", "--workdir=DIR", "--input=gone", "--output=DIR/maps"],
    ],
)
def test_a_wrong_folder_is_one_clear_line(tmp_path, arguments):
    home = Path(__file__).parents[1]
    arguments = [argument.replace("DIR", str(tmp_path)) for argument in arguments]
    ended = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=home, capture_output=True, text=True, timeout=60
    )
    lines = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


PROGRAM = """
import jax
from caal_jax.parallel import cache_programs
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
cache_programs()
jax.jit(lambda x: 2 * x)(1.0)
print(found.count("/jax/compilation_cache/cache_hits"))
"""


def test_the_second_run_finds_the_programs_of_the_first(tmp_path):
    given = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # a second, of programs worth keeping
    }
    run = [sys.executable, "-c", PROGRAM]
    hits = [
        int(subprocess.run(run, env=given, capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    assert hits[0] == 0 < hits[1]
