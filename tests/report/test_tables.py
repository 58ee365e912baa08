"""Results in, rows and text out."""

import json
import math

import numpy as np

from caal_jax.report import results_table
from caal_jax.report.tables import (
    bars_grid,
    cell_of,
    comparisons_of,
    grids_of,
    metric_named,
    sections_of,
    setting_text,
    text_of,
)


def line_of(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_table_shows_value_interval_and_chance_on_one_line(results):
    line = line_of(results_table(results), "AP ")
    assert line.split() == ["AP", "0.431", "[0.371,", "0.502]", "0.012"]


def test_columns_are_aligned(results):
    lines = results_table(results).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("By kind"))
    assert len({len(line) for line in lines[start : start + 3]}) == 1


def test_undefined_metrics_say_why(results):
    results["pixel"]["aupro"] = None
    results["image"]["ap"] = math.nan
    results["undefined"] = {"pixel.aupro": "no pixel truth", "by_kind.noise.pixel_ap": "one class"}
    results["by_kind"]["noise"]["pixel_ap"] = None
    table = results_table(results)
    assert "n/a (no pixel truth)" in line_of(table, "AUPRO")
    assert "n/a (no reason recorded)" in table
    assert "noise, Pixel AP: n/a (one class)" in table


def test_stamp_is_told_and_absent_for_real_data(results):
    assert "PHANTOM: These results are on the built-in phantom" in results_table(results)
    results["data"] |= {"is_phantom": False, "stamp": ""}
    assert "PHANTOM" not in results_table(results).upper().replace("BUILT-IN PHANTOM", "")
    results["data"]["stamp"] = "planted"
    assert "planted into the scans" in results_table(results)


def test_is_phantom_alone_is_enough_for_the_stamp(results):
    del results["data"]["stamp"]
    assert "[phantom]" in results_table(results)


def test_terminal_controls_and_line_breaks_in_names_are_disarmed(results):
    results["by_kind"] = {"\x1b[2Jred\nnext\u202e": {"pixel_ap": 0.5}, "k" * 500: {"pixel_ap": 0.1}}
    table = results_table(results)
    assert "\x1b" not in table
    assert "\u202e" not in table
    assert "red\nnext" not in table
    assert max(map(len, table.splitlines())) < 200


def test_unknown_metrics_and_sections_appear_under_their_names(results):
    results["pixel"]["surface_distance_mm"] = 3.25
    results["oddity"] = {"deep": {"er": {"number": 7}}, "flag": True}
    results["loose"] = 0.5
    table = results_table(results)
    assert line_of(table, "Surface distance mm").split()[-1] == "3.250"
    assert "Oddity, deep, er" in table
    assert line_of(table, "Number").split()[1] == "7"
    assert line_of(table, "Loose").split()[1] == "0.500"


def test_no_results_at_all_still_give_a_table():
    assert results_table({}) == "Results on unnamed data"


def test_bars_are_compared_in_the_right_direction():
    results = {
        "pixel": {"ap": 0.5, "ap_ci95": [0.4, 0.6], "fpr95": 0.2, "prevalence": 0.1},
        "bars": {
            "higher": {"pixel_ap": 0.7, "pixel_fpr95": 0.3},
            "inside": {"pixel_ap": 0.45, "pixel_fpr95": 0.1},
            "nothing": {"pixel_ap": None, "pixel_prevalence": 0.9, "volume_ap": 0.9},
        },
    }
    outcomes = [comparison.outcome for comparison in comparisons_of(results)]
    assert outcomes == ["behind", "ahead", "unclear", "behind"]
    assert "higher beats this run on Pixel AP: 0.700 against 0.500" in results_table(results)


def test_bars_table_starts_with_this_run_and_keeps_its_reason():
    results = {
        "pixel": {"ap": None},
        "bars": {"raw": {"pixel_ap": 0.1}},
        "undefined": {"pixel.ap": "no positives"},
    }
    (name, cells), (bar, bar_cells) = bars_grid(results).rows
    assert (name, bar) == ("this run", "raw")
    assert cells[0].reason == "no positives"
    assert bar_cells[0].value == "0.100"
    assert bars_grid({"pixel": {"ap": 0.5}}) is None


def test_a_line_without_a_column_is_not_called_undefined(results):
    results["by_kind"]["noise"]["pixel_aupro"] = 0.7
    table = results_table(results)
    assert line_of(table, "deformation").split()[-1] == "-"
    assert "n/a" not in table


def test_numbers_keep_their_meaning():
    assert text_of(0.00012) == "1.2e-04"
    assert text_of(0.0) == "0.000"
    assert text_of(12) == "12"
    assert text_of(True) == "yes"
    assert setting_text((0.0003, "x")) == "0.0003, x"
    assert setting_text(np.float64(0.00012345)) == "0.00012345"
    assert metric_named("image_auroc").label == "Image AUROC"
    assert metric_named("image_size").label == "Image size"


def test_interval_without_bounds_is_left_out():
    assert cell_of({"ap": 0.5, "ap_ci95": [None, None]}, "ap", {}, "pixel").interval == ""
    assert cell_of({"ap": 0.5, "ap_ci95": None}, "ap", {}, "pixel").interval == ""


def test_results_read_back_from_json_give_the_same_table(results):
    assert results_table(json.loads(json.dumps(results))) == results_table(results)


def test_every_metric_of_the_file_is_in_a_section(results):
    titles = [section.title for section in sections_of(results)]
    assert titles == ["Pixel", "Image", "Slice, image", "Confidence"]
    assert sum(len(section.rows) for section in sections_of(results)) == 6 + 3 + 1 + 5


def test_tables_inside_a_section_become_grids_of_their_own(results):
    results["confidence"]["by_uncertainty"] = {
        "entropy": {"error_auroc": 0.9, "error_auroc_ci95": [0.8, 0.95]},
        "std": {"error_auroc": None, "gain": -0.1},
    }
    results["undefined"]["confidence.by_uncertainty.std.error_auroc"] = "no errors"
    (grid,) = [one for one in grids_of(results) if "uncertainty" in one.title]
    assert grid.title == "Confidence, by uncertainty"
    assert [column.label for column in grid.columns] == ["Error AUROC", "Gain over the entropy"]
    (first, cells), (second, others) = grid.rows
    assert (first, cells[0].interval, cells[1].value) == ("entropy", "[0.800, 0.950]", "-")
    assert (second, others[0].reason, others[1].value) == ("std", "no errors", "-0.100")
    assert not any("uncertainty" in one.title for one in sections_of(results))
