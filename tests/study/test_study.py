"""A whole study of two tiny cells, interrupted and gone on with."""

import json

import jax
import pytest

from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.study.grid import Variant, cell_config, first_cells, further_cells, study_config
from caal_jax.study.run import run_study


@pytest.fixture(scope="module", autouse=True)
def _quick():
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caal_jax.train.MIN_SYNTHETIC", 4)
        patch.setattr("caal_jax.study.honest.PLANTED_EACH", 1)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def tiny_study():
    base = training_config()
    base.dataset, base.region = "mood", "brain"
    base.phantom_size, base.phantom_train, base.phantom_validation, base.phantom_test = 32, 3, 2, 4
    base.image_size, base.width, base.depth = 32, 4, 2
    base.batch_size, base.num_steps, base.warmup_steps, base.num_patches = 8, 2, 1, 1
    study = study_config(base)
    study.grid_tasks, study.grid_equalise, study.grid_seeds = "fpi", "none,preprocess", "0"
    study.num_best, study.num_resamples = 0, 20
    return study


def test_a_study_goes_on_and_ends_in_one_table(tmp_path, capsys):
    study = tiny_study()
    found = run_study(study, tmp_path, max_cells=1)
    assert (found["num_done"], found["num_cells"]) == (1, 2)
    first = tmp_path / "cells" / "fpi-none-unet-single-seed0" / "checks.json"
    checked, written = json.loads(first.read_text()), first.stat().st_mtime_ns
    assert checked["independence"] == 0
    assert len(checked["planted"]["by_kind"]) == 8
    assert 0 < checked["planted"]["ap"] < 1
    assert 0 <= checked["null"]["auroc"] <= 1

    found = run_study(study, tmp_path)
    assert found["num_done"] == 2
    assert first.stat().st_mtime_ns == written
    assert capsys.readouterr().out.count("cell 1 of 2") == 1
    names = [row["name"] for row in found["rows"]]
    assert names[2:] == ["mean template", "raw intensity", "equalised intensity", "PCA-16 residual"]
    against = found["rows"][1]["against"]
    assert set(against) == {"fpi / none / unet / single", *names[2:]}
    assert found["data"]["stamp"] == "phantom"
    text = (tmp_path / "study.md").read_text()
    assert "fpi / preprocess / unet / single" in text
    assert "[phantom]" in text
    page = (tmp_path / "study.html").read_text()
    assert "<script" not in page
    assert all(name in page for name in names)

    study.grid_seeds = "0,1"
    with pytest.raises(InputError, match="another plan"):
        run_study(study, tmp_path)


def test_a_cell_at_work_elsewhere_is_left_alone(tmp_path, capsys):
    from caal_jax import files

    with files.lock(tmp_path / "cells" / "fpi-none-unet-single-seed0"):
        found = run_study(tiny_study(), tmp_path, max_cells=1)
    assert found["num_done"] == 0
    assert "skipped" in capsys.readouterr().out


def test_the_best_tasks_get_more_ways():
    study = tiny_study()
    study.grid_tasks, study.grid_seeds = "fpi,nsa", "0,1"
    assert len(first_cells(study)) == len(set(first_cells(study))) == 8
    more = further_cells(study, ["nsa"])
    assert not set(more) & set(first_cells(study))
    assert {cell.variant.equalise for cell in more if cell.variant.confidence == "single"} == {
        "source_guidance",
        "both_guidance",
    }
    assert all(cell.variant.task == "nsa" for cell in more)
    ensemble = next(cell for cell in more if cell.variant.confidence == "ensemble")
    assert cell_config(study, ensemble).num_members == 5
    wrong = ensemble._replace(variant=Variant("nsa", "none", "unet", "certain"))
    with pytest.raises(InputError, match="certain"):
        cell_config(study, wrong)


def test_a_cell_leaves_no_programs_behind(tmp_path, monkeypatch):
    program = jax.jit(lambda x: x + 1)
    monkeypatch.setattr("caal_jax.study.run.run_cell", lambda *_: program(1.0))
    run_study(tiny_study(), tmp_path)
    assert program._cache_size() == 0
