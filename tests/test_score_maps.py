"""Maps of other tools: found, matched, scored as scikit-learn would, and never trusted blindly."""

import csv
import json
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from caal_jax.errors import InputError
from caal_jax.score_maps import find_pairs, read_scale, read_scores, score_maps


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    from caal_jax import score_maps as module

    def config():
        found = module_config()
        found.num_resamples = 20
        return found

    module_config = module.training_config
    monkeypatch.setattr(module, "training_config", config)


def png16(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.round(values * 65535).astype(np.uint16))


def mask_png(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.uint8(255 * mask))


def made_up(number, seed=0):
    """(map in [0, 1], mask) of 24 x 20 pixels; every third case is normal."""
    rng = np.random.default_rng([seed, number])
    mask = np.zeros((24, 20), bool)
    if number % 3:
        mask[4 + number : 10 + number, 5:11] = True
    noise = ndimage.gaussian_filter(rng.random(mask.shape), 1)
    return np.clip(0.5 * noise + 0.35 * mask * rng.random(), 0, 1), mask


@pytest.fixture
def folders(tmp_path):
    for number in range(6):
        values, mask = made_up(number)
        png16(tmp_path / "maps" / f"case{number}_anomaly.png", values)
        mask_png(tmp_path / "truth" / f"case{number}.png", mask)
    return tmp_path


def stored(number):
    values, mask = made_up(number)
    return np.round(values * 65535) / 65535, mask


def test_numbers_are_those_of_scikit_learn(folders):
    results = score_maps(folders / "maps", folders / "truth", folders / "out")
    values, masks = zip(*map(stored, range(6)), strict=True)
    flat = np.concatenate([one.ravel() for one in values])
    truth = np.concatenate([one.ravel() for one in masks])
    assert results["pixel"]["ap"] == pytest.approx(average_precision_score(truth, flat), abs=0.005)
    assert results["pixel"]["auroc"] == pytest.approx(roc_auc_score(truth, flat), abs=1e-3)
    low, high = map(float, results["data"]["notes"][-1].rsplit("[", 1)[1].rstrip("].").split(", "))
    assert low - 1e-5 <= average_precision_score(truth, flat) <= high + 1e-5
    # The mean of the top 1 %, that is of 5 of 480 pixels.
    scores = [np.sort(one, axis=None)[-5:].mean() for one in values]
    labels = [one.any() for one in masks]
    assert results["image"]["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert results["confidence"]["ece"] is None
    assert "without" in results["undefined"]["confidence.ece"]
    with (folders / "out" / "predictions" / "scores.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [float(row["score"]) for row in rows] == pytest.approx(scores)
    assert json.loads((folders / "out" / "metrics.json").read_text()) == results
    page = (folders / "out" / "report.html").read_text()
    assert "maps of another tool, <bdi>maps</bdi>" in page
    assert "saw healthy images only" not in page


def test_the_range_of_the_scores_does_not_matter(folders):
    first = score_maps(folders / "maps", folders / "truth", folders / "out")
    for number in range(6):
        values, _ = stored(number)
        logits = 1000 * values - 700  # keeps the order and leaves [0, 1]
        np.save(folders / "maps" / f"case{number}.npy", logits)
        (folders / "maps" / f"case{number}_anomaly.png").unlink()
    again = score_maps(folders / "maps", folders / "truth", folders / "again")
    for name in ("ap", "auroc", "aupro", "fpr95", "best_dice"):
        assert again["pixel"][name] == pytest.approx(first["pixel"][name], abs=1e-9)
    assert again["image"]["auroc"] == first["image"]["auroc"]


def test_unusable_maps_count_as_lowest_and_are_told(folders):
    whole = score_maps(folders / "maps", folders / "truth", folders / "out")
    (folders / "maps" / "case1_anomaly.png").unlink()
    (folders / "maps" / "case2_anomaly.png").write_bytes(b"not an image")
    png16(folders / "maps" / "case4_anomaly.png", np.ones((5, 5)))
    results = score_maps(folders / "maps", folders / "truth", folders / "again")
    assert results["data"]["num_test"] == 6
    assert "3 cases count as scored lowest everywhere" in results["data"]["notes"][0]
    values, masks = zip(*map(stored, range(6)), strict=True)
    usable = [values[n] for n in (0, 3, 5)]
    lowest = min(1.0, *(one.min() for one in usable))
    flat = np.concatenate(
        [np.full(480, lowest) if n in (1, 2, 4) else values[n].ravel() for n in range(6)]
    )
    truth = np.concatenate([one.ravel() for one in masks])
    assert results["pixel"]["ap"] == pytest.approx(average_precision_score(truth, flat), abs=0.005)
    assert results["pixel"]["ap"] < whole["pixel"]["ap"]


def test_volumes_keep_their_slices_together(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        mask = np.zeros((10, 12, 6), np.uint8)
        if number:
            mask[2:5, 3:7, 4] = 1
        values = (0.3 * rng.random(mask.shape) + 0.5 * mask).astype(np.float32)
        for folder, array in (("maps", values), ("truth", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / folder / f"v{number}.nii.gz")
    np.save(tmp_path / "maps" / "v2.npy", values)  # in the axis order of the file
    (tmp_path / "maps" / "v2.nii.gz").unlink()
    results = score_maps(tmp_path / "maps", tmp_path / "truth", tmp_path / "out")
    assert results["pixel"]["ap"] == pytest.approx(1)
    assert results["slice"]["auroc"] == pytest.approx(1)
    assert "slice 5 of 6" in (tmp_path / "out" / "report.html").read_text()


def test_names_are_matched_as_people_write_them(tmp_path):
    for name in ("crack/000.png", "good/001.png", "crack/extra.png", "crack/000_uncertainty.png"):
        png16(tmp_path / "maps" / name, np.zeros((3, 3)))
    mask_png(tmp_path / "truth" / "crack" / "000_mask.png", np.ones((3, 3)))
    pairs, ignored = find_pairs(tmp_path / "maps", tmp_path / "truth")
    assert [(pair.key, pair.kind) for pair in pairs] == [
        ("crack/000", "crack"),
        ("good/001", "normal"),
    ]
    assert pairs[1].truth is None
    assert [path.name for path in ignored] == ["extra.png"]


def test_nothing_to_match_is_told_with_names(folders):
    (folders / "other").mkdir()
    mask_png(folders / "other" / "elsewhere.png", np.ones((3, 3)))
    with pytest.raises(InputError, match=r"'case0'.*'elsewhere'"):
        score_maps(folders / "maps", folders / "other", folders / "out")
    with pytest.raises(InputError, match="no folder"):
        score_maps(folders / "nowhere", folders / "truth", folders / "out")


@pytest.mark.parametrize(
    "array",
    [
        np.array([{"a": 1}], object),
        np.zeros((2, 2, 2, 2)),
        np.full((2, 2), np.nan),
        np.array([["a", "b"]]),
    ],
)
def test_odd_arrays_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npy"):
        read_scores(tmp_path / "a.npy")


class Bomb:
    """Pickled, it makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_arrays_of_strangers_run_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Bomb(tmp_path / "gone off")], object), allow_pickle=True)
    with pytest.raises(InputError, match="no readable array"):
        read_scores(tmp_path / "a.npy")
    assert not (tmp_path / "gone off").exists()


def test_the_scale_keeps_the_order_and_is_finest_on_top(tmp_path):
    # A map of mostly zeros, as many tools write it, with a tail of 100 distinct scores.
    values = np.zeros((100, 100))
    values[0] = np.linspace(5, 6, 100)
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "a.npy", values)
    mask_png(tmp_path / "truth" / "a.png", values > 5.5)
    pairs, _ = find_pairs(tmp_path / "maps", tmp_path / "truth")
    scale, broken = read_scale(pairs, 2)
    ranked = scale.rank(values[0])
    assert not broken
    assert ranked[-1] == 1
    assert scale.rank(0.0) == 0
    assert np.diff(ranked).min() > 1 / 4096
