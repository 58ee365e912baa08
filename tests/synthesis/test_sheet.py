import subprocess
import sys

import cv2
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from caal_jax.errors import InputError
from caal_jax.synthesis import TASKS, contact_sheet


@pytest.fixture(scope="module")
def picture():
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((80, 60)), 2)
    return np.uint8(40 + 200 * (noise - noise.min()) / np.ptp(noise))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, picture):
    """Three pictures, a mask and a broken file."""
    root = tmp_path_factory.mktemp("scans")
    for number in range(3):
        cv2.imwrite(str(root / f"scan {number}.png"), np.roll(picture, 10 * number, 0))
    cv2.imwrite(str(root / "scan 1_mask_1.png"), picture)
    (root / "broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture
def drawn(monkeypatch):
    """What went onto the sheet, row by row."""
    sheets, draw_sheet = [], contact_sheet.draw_sheet

    def spy(rows, title):
        sheets.append((rows, title))
        return draw_sheet(rows, title)

    monkeypatch.setattr(contact_sheet, "draw_sheet", spy)
    return sheets


def test_tasks_are_known_by_their_names():
    assert set(TASKS) >= {"cutpaste", "cutpaste_scar", "fpi", "pii", "nsa", "probabilistic_pii"}
    assert all(task.__name__ == name for name, task in TASKS.items())


def test_sheet_of_a_folder(tmp_path, folder, drawn, capsys):
    calls = ((["fpi"], 0), (["fpi"], 0), (["fpi", "cutpaste"], 5))
    sheets = []
    for number, (tasks, seed) in enumerate(calls):
        output = tmp_path / "new" / f"{number}.png"
        made = contact_sheet.contact_sheet(tasks, folder, output, seed=seed, num=2)
        assert made == output
        sheets.append(np.asarray(Image.open(output)))
    assert np.array_equal(sheets[0], sheets[1])
    assert 1.6 < sheets[2].shape[0] / sheets[0].shape[0] < 2
    assert "skipped" in capsys.readouterr().err
    (first, title), _, (rows, other_title) = drawn
    assert "seed=0" in title
    assert "seed=5" in other_title
    assert [row[0].split("\n")[0] for row in rows] == 2 * ["fpi"] + 2 * ["cutpaste"]
    names = {row[0].split("\n")[1] for sheet in (first, rows) for row in sheet}
    assert names == {"scan 0", "scan 1", "scan 2"}
    assert any(np.any(a[3].label != b[3].label) for a, b in zip(first, rows[:2], strict=True))
    for _, target, source, anomaly in rows:
        assert target.shape == (256, 256, 1)
        assert np.any(target != source)
        assert np.any(anomaly.image != target)
        assert np.any(anomaly.label)


def test_a_lone_picture_and_a_volume_serve_as_their_own_source(tmp_path, picture, drawn):
    cv2.imwrite(str(tmp_path / "one.png"), picture)
    stack = np.stack([np.roll(picture, k, 0) for k in range(20)], -1).astype(np.float32)
    nib.save(nib.Nifti1Image(stack, np.diag([1, 2, 3, 1])), tmp_path / "volume.nii.gz")
    for name in ("one.png", "volume.nii.gz"):
        sheet = tmp_path / f"{name}.sheet.png"
        how = {"num": 2, "equalise": "none"}
        contact_sheet.contact_sheet(["fpi"], tmp_path / name, sheet, **how)
    (lone, _), (slices, _) = drawn
    assert [row[0] for row in lone] == 2 * ["fpi\none"]
    assert [row[0] for row in slices] == ["fpi\nvolume, slice 7", "fpi\nvolume, slice 10"]
    for _, target, source, _ in (*lone, *slices):
        assert np.any(target != source)
    # Pixels of 1 x 2 mm make 80 x 60 of them 80 x 120 mm: the square is filled in width alone.
    rows = np.flatnonzero(np.ptp(slices[0][1], axis=1))
    assert len(rows) == pytest.approx(256 * 80 / 120, abs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["fpi", "blur"]}, "'blur'"),
        ({"source": "nowhere"}, "nowhere: found nothing"),
        ({"source": "empty"}, "no image"),
        ({"source": "bad"}, "1 unusable"),
        ({"output": "sheet.jpg"}, r"'.jpg'"),
        ({"output": "folder.png"}, "a folder"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path, folder, change, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "scan.png").write_bytes(b"no picture")
    arguments = {"tasks": ["fpi"], "source": folder, "output": "sheet.png"} | change
    for name in ("source", "output"):
        arguments[name] = tmp_path / arguments[name]
    with pytest.raises(InputError, match=message):
        contact_sheet.contact_sheet(*arguments.values())
    assert not (tmp_path / "sheet.png").exists()


def test_command_line_draws_the_phantom(tmp_path):
    output = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "caal_jax.synthesis", f"--output={output}", "--num=1"]
    done = subprocess.run([*command, "--task=fpi"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(output)
    image = np.asarray(Image.open(output))
    assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 200
    done = subprocess.run([*command, "--task=blur"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: --task: found 'blur'")
