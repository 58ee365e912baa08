"""Two runs on the same cases: paired numbers, one truth, a page that runs nothing."""

import json

import cv2
import numpy as np
import pytest
from scipy import ndimage

from caal_jax import score_maps
from caal_jax.case_statistics import CaseStatistics
from caal_jax.compare import compare, run_names
from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.evaluate import read_statistics
from caal_jax.metrics import average_precision, roc_auc

NUM_CASES = 8


def write_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)


def case(number, strength):
    """(map, mask): noise that is the same for every strength, and a lesion in odd cases."""
    rng = np.random.default_rng(number)
    mask = np.zeros((24, 24), bool)
    mask[5:12, 8:14] = number % 2
    noise = ndimage.gaussian_filter(rng.random(mask.shape), 1.5)
    return np.clip(0.6 * noise + strength * mask, 0, 1), mask


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs: a strong tool, a weak one, and one with another truth for one case."""
    home = tmp_path_factory.mktemp("compare")

    def quick():
        config = training_config()
        config.num_resamples = 40
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_maps, "training_config", quick)
        for name, strength in (("strong", 0.2), ("weak", 0.02), ("moved", 0.2)):
            for number in range(NUM_CASES):
                values, mask = case(number, strength)
                if name == "moved" and number == 1:
                    mask[0, 0] = True
                key = f"<b>{number}</b>" if number else "0"
                key = key.replace("/", "_")
                write_png(home / name / "maps" / f"{key}.png", np.uint16(65535 * values))
                write_png(home / name / "truth" / f"{key}.png", np.uint8(255 * mask))
            folders = home / name / "maps", home / name / "truth", home / name
            score_maps.score_maps(*folders)
    return home


@pytest.fixture(scope="module")
def compared(runs):
    output = runs / "out" / "compare.html"
    found = compare([runs / "weak", runs / "strong"], output, num_resamples=200)
    return found, output


def test_values_and_differences_are_those_of_the_common_cases(compared):
    found, output = compared
    assert json.loads(output.with_suffix(".json").read_text()) == found
    truth = np.stack([case(number, 0)[1] for number in range(NUM_CASES)])
    of_runs = {
        name: np.stack([case(number, strength)[0] for number in range(NUM_CASES)])
        for name, strength in (("strong", 0.2), ("weak", 0.02))
    }
    value = {name: average_precision(maps, truth) for name, maps in of_runs.items()}
    for name in of_runs:
        assert found["metrics"][name]["pixel"]["ap"] == pytest.approx(value[name], abs=0.02)
    difference = found["differences"]["strong"]["pixel.ap"]
    assert difference["value"] == pytest.approx(value["strong"] - value["weak"], abs=0.02)
    assert 0 < difference["ci95"][0] < difference["value"] < difference["ci95"][1]
    assert difference["p_value"] <= 0.02
    labels = truth.any(axis=(1, 2))
    tops = {
        n: np.sort(m.reshape(NUM_CASES, -1), axis=1)[:, -6:].mean(1) for n, m in of_runs.items()
    }
    auroc = {name: roc_auc(scores, labels) for name, scores in tops.items()}
    assert found["differences"]["strong"]["image.auroc"]["value"] == pytest.approx(
        auroc["strong"] - auroc["weak"], abs=1e-9
    )
    assert not any(name.startswith("confidence") for name in found["differences"]["strong"])


def test_a_run_does_not_differ_from_itself(runs):
    found = compare([runs / "weak", runs / "weak"], runs / "same.html", num_resamples=20)
    assert found["runs"] == ["weak", "weak (2)"]
    for difference in found["differences"]["weak (2)"].values():
        assert difference["value"] == 0
        assert difference["ci95"] == [0, 0]
        assert difference["p_value"] == 1


def test_the_page_shows_all_cases_of_all_runs_and_runs_nothing(compared):
    text = compared[1].read_text()
    assert "<script" not in text
    assert "<b>" not in text
    assert text.count("&lt;b&gt;1&lt;") > 0
    assert text.count("<article") == NUM_CASES
    assert text.count('alt="strong, case') == text.count('alt="weak, case') == NUM_CASES
    assert "http:" not in text.replace("http://www.w3.org", "")


def test_cases_that_one_run_lacks_are_left_out_and_told(runs, tmp_path):
    short = tmp_path / "short"
    statistics = short / "predictions" / "statistics"
    statistics.mkdir(parents=True)
    source = runs / "strong"
    (short / "metrics.json").write_text((source / "metrics.json").read_text())
    for kept in read_statistics(source)[:5]:
        kept.save(statistics / f"{kept.case_id.strip('<b>')}.npz")
    found = compare([runs / "weak", short], tmp_path / "c.html", num_resamples=5)
    assert found["num_cases"] == 5
    assert found["notes"] == ["3 cases of weak are left out: not every run has them."]


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="another truth in moved than in weak"):
        compare([runs / "weak", runs / "moved"], tmp_path / "c.html")
    with pytest.raises(InputError, match="1 of them"):
        compare([runs / "weak"], tmp_path / "c.html")
    with pytest.raises(InputError, match="no statistics"):
        compare([runs / "weak", tmp_path], tmp_path / "c.html")
    other = tmp_path / "other"
    (other / "predictions" / "statistics").mkdir(parents=True)
    (other / "metrics.json").write_text("{}")
    stranger = CaseStatistics("x", "x", "normal", 0, 0.1, has_mask=False)
    stranger.save(other / "predictions" / "statistics" / "x.npz")
    with pytest.raises(InputError, match="no case that all of them scored"):
        compare([runs / "weak", other], tmp_path / "c.html")
    (other / "predictions" / "statistics" / "unfinished").write_text("")
    with pytest.raises(InputError, match="unfinished"):
        compare([runs / "weak", other], tmp_path / "c.html")
    assert not (tmp_path / "c.html").exists()


def test_runs_are_named_by_their_folders(tmp_path):
    paths = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "y"]
    assert run_names(paths) == ["x", "x (2)", "y"]
