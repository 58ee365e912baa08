"""Data flows one way: a stage imports nothing from a later one."""

import ast
from pathlib import Path

import pytest

import caal_jax

STAGES = ("data", "preprocess", "synthesis", "localisers", "confidence", "metrics", "report")
HOME = Path(caal_jax.__file__).parent


def imported(path):
    """Stages that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{name.name}" for name in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "caal_jax" and len(part) > 1} & set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_nothing_from_a_later_one(stage):
    later = set(STAGES[STAGES.index(stage) + 1 :])
    paths = list((HOME / stage).rglob("*.py"))
    assert paths
    for path in paths:
        assert not imported(path) & later, path


def test_imports_are_seen():
    assert imported(HOME / "evaluate.py") >= {"data", "report"}
