"""Every notebook runs from top to bottom in a kernel of its own, with small parameters."""

import base64
import os
import re
from pathlib import Path

import cv2
import jax
import nbclient
import nbformat
import numpy as np
import pytest

COLAB = Path(__file__).parents[2] / "colab"
SMALL = "STEPS, MEMBERS, SIZE, WIDTH = 2, 2, 32, 4\n"
QUICK = "import caal_jax.train\n\ncaal_jax.train.MIN_SYNTHETIC = 4  # as the other tests do\n"
PARAMETERS = {
    "1_synthesise": 'SEED, SIZE, TASKS_SHOWN, IMAGES = 0, 32, ["cutpaste", "fpi_blob"], None\n',
    "2_train_and_localise": SMALL + 'CASES, WORKDIR = (3, 2, 4), "runs/phantom"\n',
    "3_confidence": SMALL + 'CASES, WORKDIR = (3, 2, 4), "runs/phantom"\n',
    "4_your_own_scans": SMALL + 'DATA_DIR, NEW_SCANS, WORKDIR = "", "", "runs/mine"\n',
}
NAMES = sorted(path.stem for path in COLAB.glob("*.ipynb"))


def read(name):
    return nbformat.read(COLAB / f"{name}.ipynb", as_version=4)


def tagged(book):
    (cell,) = [one for one in book.cells if "parameters" in one.metadata.get("tags", [])]
    return cell


def assigned(source):
    """The names that the parameters set."""
    code = compile(source, "parameters", "exec")
    return set(code.co_names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the notebooks run one after the other: the third finds the second's training."""
    return tmp_path_factory.mktemp("colab")


@pytest.mark.filterwarnings("ignore")  # of the machinery of Jupyter, not of this package
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name, folder, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    book = read(name)
    tagged(book).source = PARAMETERS[name] + QUICK
    client = nbclient.NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    pictures = [
        output.data["image/png"]
        for cell in book.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2
    for picture in pictures:
        image = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR)
        assert image.std() > 5
    if os.environ.get("CAAL_SHOW_NOTEBOOKS"):
        nbformat.write(book, Path(os.environ["CAAL_SHOW_NOTEBOOKS"]) / f"{name}.ipynb")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_as_a_newcomer_meets_it(name):
    book = read(name)
    nbformat.validate(book)
    first, second = book.cells[:2]
    assert f"/blob/main/colab/{name}.ipynb" in first.source
    assert "colab-badge.svg" in first.source
    # The badge and the installation lead to the same place.
    (badge,) = re.findall(r"research\.google\.com/github/([\w-]+/[\w-]+)/", first.source)
    assert f"https://github.com/{badge}" in second.source
    assert "%pip install" in second.source
    assert book.cells[2] is tagged(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_the_small_sizes_are_parameters_of_the_notebook(name):
    assert assigned(PARAMETERS[name]) == assigned(tagged(read(name)).source)


def test_there_are_four():
    assert list(PARAMETERS) == NAMES
