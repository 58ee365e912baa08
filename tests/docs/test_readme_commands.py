"""The README's path for a folder of one's own images, its commands run as they stand."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np

from caal_jax.data.phantom import make_volume

ROOT = Path(__file__).parents[2]
TINY = {
    "image_size": 32,
    "width": 4,
    "depth": 2,
    "num_members": 1,
    "num_steps": 2,
    "batch_size": 4,
    "num_resamples": 20,
    "task": "fpi",
    "num_patches": 1,
    "source_jitter": False,
    "equalise": "none",
}


def write_image(path, seed, *, spot=False):
    """A slice of a phantom; with a bright spot, its mask goes where the README says."""
    image = np.uint8(200 * make_volume((5, seed), region="brain", size=48)[:, :, 24])
    path.parent.mkdir(parents=True, exist_ok=True)
    if spot:
        mask = np.zeros_like(image)
        mask[20:28, 20:28] = 255
        image = np.maximum(image, mask)
        masks = path.parents[2] / "ground_truth" / path.parent.name
        masks.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(masks / f"{path.stem}_mask.png"), mask)
    cv2.imwrite(str(path), image)


def test_own_images_to_report_maps_and_one_file(tmp_path):
    for number in range(5):
        write_image(tmp_path / "DIR" / "normal" / f"{number}.png", number)
    write_image(tmp_path / "DIR" / "test" / "good" / "5.png", 5)
    write_image(tmp_path / "DIR" / "test" / "spot" / "6.png", 6, spot=True)
    write_image(tmp_path / "NEW_SCANS" / "a" / "7.png", 7)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    # The reader's environment, except that training takes few and small steps.
    tiny = " ".join(f"--config.{name}={value}" for name, value in TINY.items())
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(
        f'python() {{ more=""; [ "$2" = caal_jax.main ] && more="{tiny}"; '
        f'"{sys.executable}" "$@" $more; }}\n'
    )
    (block,) = (
        block
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
        if "caal_jax.predict" in block
    )
    assert len(re.findall("^python -m", block, re.M)) == 4
    done = subprocess.run(
        ["bash", "-euc", block],
        cwd=tmp_path,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "PYTHONWARNINGS": "default",
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for said in (
        "DIR: 4 train, 1 validation, 2 test",
        "DIR: 4 training, 1 held-out healthy, 2 test cases",
        "report: runs/mine/report.html",
        "1 localised",
        "shipped/model.jaxexport",
    ):
        assert said in done.stdout
    assert "Traceback" not in done.stderr
    report = (tmp_path / "runs" / "mine" / "report.html").read_text()
    assert "spot-6" in report
    with (tmp_path / "maps" / "scores.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["a/7.png"]
    assert {path.name for path in (tmp_path / "shipped").iterdir()} == {
        "model.jaxexport",
        "load_model.py",
        "model_card.md",
    }
