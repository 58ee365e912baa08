"""What the README and docs/ show is there, and runs."""

import ast
import importlib.util
import re
import runpy
import shlex
import shutil
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from caal_jax.data.phantom import make_volume

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Few synthetic cases, and programs that run once are not worth compiling well."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caal_jax.train.MIN_SYNTHETIC", 4)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def commands(page):
    """Every command line of a page: those of bash blocks and those in backticks."""
    text = page.read_text()
    found = [line for block in blocks(page, "bash") for line in block.splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    found += [" ".join(span.split()) for span in spans]
    starts = ("python ", "bash ", "sbatch ", "kubectl ", "source ", "pip ", ".venv/bin/pip ")
    lines = [line.split("#")[0].strip() for line in found]
    return [line for line in lines if line.startswith((*starts, "--config.", "tensorboard "))]


def test_the_commands_are_found():
    shown = commands(ROOT / "README.md")
    assert len(shown) >= 15
    for start in ("bash launch/quickstart.sh", "python -m caal_jax.export", "sbatch launch/"):
        assert any(line.startswith(start) for line in shown)


def flags_of(path):
    """The flags that a program defines, absl's or argparse's, by name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            first = (
                node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            )
            if node.func.attr.startswith("DEFINE_"):
                found.add(first)
            elif node.func.attr == "add_argument":
                found.add(first.lstrip("-"))
    return found


def fields_of(path):
    return set(runpy.run_path(str(path))["get_config"]())


def program(words):
    """The source of `python -m MODULE` or `python FILE`."""
    if words[1] != "-m":
        return ROOT / words[1]
    path = Path(importlib.util.find_spec(words[2]).origin)
    return path.with_name("__main__.py") if path.name == "__init__.py" else path


def check(words):
    """Raises AssertionError unless a `python` command could be parsed by its program."""
    path = program(words)
    known, config = flags_of(path), ROOT / "configs" / "mood.py"
    options = [word for word in words if word.startswith("--")]
    for option in options:
        name, _, value = option[2:].partition("=")
        if name == "config" and value.startswith("configs/"):
            config = ROOT / value
    for option in options:
        name = option[2:].partition("=")[0]
        if name.startswith("config."):
            assert name.split(".")[1] in fields_of(config), option
        else:
            assert name in known, f"{option} of {path.name}, which knows {sorted(known)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_names_what_is_there(page):
    for line in commands(page):
        words = shlex.split(line)
        if words[0] == "python":
            check(words)
        for word in words:
            if re.match(r"(launch|configs|docs|benchmarks)/", word.split("=")[-1]):
                assert (ROOT / word.split("=")[-1]).exists(), line
        if words[0].endswith("pip"):
            for extra in re.findall(r"\[(\w+)\]", line):
                assert re.search(rf"^{extra} = ", (ROOT / "pyproject.toml").read_text(), re.M), line
        fields = [re.split(r"[.=]", word)[1] for word in words if word.startswith("--config.")]
        if words[0] in ("bash", "sbatch") or words[0].startswith("--config."):
            assert set(fields) <= fields_of(ROOT / "configs" / "mood.py"), line


def test_a_wrong_command_would_be_seen():
    with pytest.raises(AssertionError):
        check(["python", "-m", "caal_jax.predict", "--workdirs=x"])
    with pytest.raises(AssertionError):
        check(["python", "-m", "caal_jax.main", "--config=configs/mood.py", "--config.speed=1"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_names_in_the_map_of_the_folders_exist():
    text = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"```\n(caal_jax/\n.*?)```", text, re.S)
    for name in re.findall(r"[\w.]+\.py|\w+/", tree):
        assert (ROOT / "caal_jax" / name).exists() or (ROOT / name).exists(), name


def test_no_page_shows_python_that_is_not_run():
    shown = {page.name: len(blocks(page, "python")) for page in PAGES}
    assert {name for name, number in shown.items() if number} == {"README.md", "extend.md"}


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, untrained_run, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(untrained_run, tmp_path / "runs" / "mine")
    scan = nib.Nifti1Image(make_volume(3, region="brain", size=32)[8:24], np.eye(4))
    nib.save(scan, "scan.nii.gz")
    (code,) = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert re.match(r"(normal|abnormal|abstain) 0?\.?\d", capsys.readouterr().out)


def test_each_extension_is_short_and_they_train_together(tmp_path, monkeypatch, capsys):
    code = blocks(ROOT / "docs" / "extend.md", "python")
    assert len(code) == 5
    assert all(len(block.splitlines()) < 40 for block in code)
    for name, numbers in {"train": 4, "validation": 2, "test_normal": 1, "test_lesion": 2}.items():
        folder = tmp_path / "arrays" / name
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for number in range(numbers):
            image = make_volume((numbers, number), region="brain", size=32)[:, :, 16]
            np.save(folder / "images" / f"p{number}_{name}.npy", image)
            if name == "test_lesion":
                np.save(folder / "masks" / f"p{number}_{name}.npy", image > 0.8)
    monkeypatch.chdir(tmp_path)
    from caal_jax.localisers import LOCALISERS
    from caal_jax.synthesis import TASKS

    for names in (LOCALISERS, TASKS):
        for name in list(names):
            monkeypatch.setitem(names, name, names[name])
    space = {}
    try:
        for number, block in enumerate(code):
            exec(compile(block, f"extend.md, block {number + 1}", "exec"), space)
    finally:
        TASKS.pop("dark_spot", None)
        LOCALISERS.pop("plain", None)
    assert "relative error of the area" in capsys.readouterr().out
    assert space["total"].true > 0
    assert {entry.load().case_id for entry in space["dataset"].test} == {
        "p0_test_normal",
        "p0_test_lesion",
        "p1_test_lesion",
    }
    # The task does what it says, and only inside the body.
    key, image = jax.random.key(0), np.full((32, 32, 1), 0.8, np.float32)
    body = np.zeros((32, 32, 1), bool)
    body[8:24, 8:24] = True
    made = space["dark_spot"](key, image, image, foreground=body)
    assert made.label.any()
    np.testing.assert_allclose(made.image, np.where(made.label, 0.4, 0.8))
    assert not np.asarray(made.label)[~body].any()


def test_the_strip_shows_cases_of_a_run(tmp_path):
    from caal_jax.data import load_dataset
    from caal_jax.defaults import training_config

    config = training_config()
    config.dataset, config.region = "mood", "brain"
    config.phantom_size, config.phantom_test = 32, 2
    config.phantom_train = config.phantom_validation = 0
    (tmp_path / "predictions").mkdir()
    (tmp_path / "config.json").write_text(config.to_json())
    lines = ["case_id,verdict"]
    for entry in load_dataset(config).test:
        lines.append(f"{entry.case_id},abnormal")
        for kind in ("anomaly", "uncertainty"):
            noise = np.random.default_rng(0).random((32, 32, 32), np.float32)
            path = tmp_path / "predictions" / f"{entry.case_id}_{kind}.nii.gz"
            nib.save(nib.Nifti1Image(noise, np.eye(4)), path)
    (tmp_path / "predictions" / "scores.csv").write_text("\n".join(lines))
    strip = runpy.run_path(str(ROOT / "docs" / "strip.py"))["strip"]
    strip(tmp_path, [1, 0], tmp_path / "strip.png")
    assert (tmp_path / "strip.png").read_bytes()[:4] == b"\x89PNG"
