"""What is kept of a case comes back as it was; curves and their bands say what they should."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from sklearn.metrics import precision_recall_curve, roc_curve

from caal_jax.case_statistics import CaseStatistics
from caal_jax.errors import InputError
from caal_jax.evaluate import Unfinished, case_cards, choose_gallery
from caal_jax.report.page import MAX_CARDS, chosen_cards
from caal_jax.report.sprites import case_budget_bytes, decoded, make_sprites
from caal_jax.summarise import (
    GRID,
    curve_band,
    precision_at_recall,
    risk_at_coverage,
    tpr_at_fpr,
)


def volume(depth=9, height=40, width=30, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.zeros((depth, height, width), bool)
    truth[6, 10:20, 5:9] = True
    image = np.broadcast_to(np.linspace(0, 1, width), truth.shape)[..., None]
    return (
        image,
        truth,
        np.where(truth, 0.8, 0.1),
        ndimage.gaussian_filter(0.2 * rng.random(truth.shape), 2),
    )


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert_array_equal(one, other)


def full_case():
    """A case with something in every field, whatever fields there are."""
    filled = {
        "case_id": "</script> = 'a'\n",
        "patient": "p",
        "kind": "lesion",
        "label": 1,
        "score": np.float32(0.25),
        "has_mask": True,
        "bars": {"raw intensity": (np.arange(6.0), 0.5), "none": (None, 0.1)},
        "sprites": make_sprites(*volume(), budget_bytes=10**5),
    }
    for field in dataclasses.fields(CaseStatistics):
        filled.setdefault(field.name, np.arange(4).reshape(2, 2))
    return CaseStatistics(**filled)


def test_a_case_comes_back_as_it_was(tmp_path):
    case = full_case()
    case.save(tmp_path / "a.npz")
    again = CaseStatistics.load(tmp_path / "a.npz")
    for field in dataclasses.fields(CaseStatistics):
        assert_same(getattr(again, field.name), getattr(case, field.name))
    assert again.sprites.stack.image.dtype == np.uint8
    with pytest.raises(TypeError, match=r"bars\.0"):
        dataclasses.replace(case, bars={"x": {1, 2}}).save(tmp_path / "b.npz")
    assert not (tmp_path / "b.npz").exists()


class Bomb:
    """Pickled, it makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_damaged_or_foreign_statistics_are_refused(tmp_path):
    full_case().save(tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    np.savez(tmp_path / "pickle.npz", facts=np.array([Bomb(tmp_path / "gone off")], object))
    np.savez(tmp_path / "other.npz", facts=np.array('{"case_id": "a"}'))
    for name in ("cut", "pickle", "other"):
        with pytest.raises(InputError, match="statistics of a case"):
            CaseStatistics.load(tmp_path / f"{name}.npz")
    assert not (tmp_path / "gone off").exists()


def test_only_an_interrupted_evaluation_of_the_same_run_goes_on(tmp_path):
    folder = tmp_path / "statistics"
    first = Unfinished(folder, of_run="a")
    first.save("one", full_case())
    assert Unfinished(folder, of_run="a").load("one").kind == "lesion"
    assert Unfinished(folder, of_run="a").load("two") is None
    assert Unfinished(folder, of_run="b").load("one") is None
    again = Unfinished(folder, of_run="b")
    again.save("one", full_case())
    (folder / "two.npz").write_bytes(b"cut")
    assert Unfinished(folder, of_run="b").load("two") is None
    again.finish()
    # Test images may have changed since.
    assert Unfinished(folder, of_run="b").load("one") is None


def test_sprites_keep_the_telling_slice():
    image, truth, anomaly, doubt = volume()
    sprites = make_sprites(image, truth, anomaly, doubt, budget_bytes=10**6)
    assert (sprites.key_slice, sprites.depth, sprites.slices) == (6, 9, tuple(range(9)))
    assert sprites.slices[sprites.key_tile] == 6
    layers = decoded(sprites.key)
    assert_allclose(layers.image, image[6, ..., 0], atol=0.05)
    assert_allclose(layers.anomaly, anomaly[6], atol=0.06)  # JPEG rings at the edge of the lesion
    assert_array_equal(layers.truth, truth[6])
    assert_allclose(layers.uncertainty, doubt[6], atol=0.006)
    assert sprites.uncertainty_peak == pytest.approx(np.quantile(doubt[6], 0.999))
    stack = decoded(sprites.stack)
    at = sprites.key_tile
    top, left = at // sprites.columns * sprites.height, at % sprites.columns * sprites.width
    tile = stack.truth[top : top + sprites.height, left : left + sprites.width]
    assert_array_equal(tile, truth[6])


def test_small_uncertainties_are_told_apart():
    image, truth, anomaly, _ = volume()
    doubt = np.broadcast_to(np.linspace(0, 0.01, 40)[None, :, None], truth.shape)
    found = decoded(make_sprites(image, truth, anomaly, doubt, budget_bytes=0).key).uncertainty
    assert_allclose(found, doubt[0], atol=6e-4)


def test_sprites_of_large_volumes_stay_within_their_budget():
    rng = np.random.default_rng(0)
    noise = np.float32(rng.random((100, 64, 64)))
    sprites = make_sprites(noise[..., None], noise > 2, noise, noise / 2, budget_bytes=90_000)
    size = sum(layer.size for layer in sprites.stack if layer is not None)
    assert size <= 90_000
    assert sprites.key_slice in sprites.slices
    assert len(sprites.slices) < sprites.depth == 100
    assert make_sprites(noise[..., None], None, noise, None, budget_bytes=0).stack is None
    assert 200 * case_budget_bytes(200) * 4 / 3 < 13e6


def test_a_colour_image_keeps_its_colours():
    image = np.zeros((20, 20, 3))
    image[..., 0] = 1
    layers = decoded(make_sprites(image, None, image[..., 0], None, budget_bytes=0).key)
    assert_allclose(layers.image[5, 5], [1, 0, 0], atol=0.03)
    assert layers.truth is None
    assert layers.uncertainty is None


def scored(probability, label, score=0.0, case_id=""):
    return CaseStatistics(
        case_id=case_id,
        patient="",
        kind="",
        label=label,
        score=score,
        has_mask=False,
        probability=probability,
    )


def test_the_gallery_shows_best_and_worst_and_nobody_twice():
    pairs = zip([0.9, 0.8, 0.1, 0.7, 0.2, 0.5], [1, 1, 1, 0, 0, 0], strict=True)
    cards = case_cards([scored(p, y, case_id=str(n)) for n, (p, y) in enumerate(pairs)])
    chosen = choose_gallery(cards, each=2)
    why = {card.case_id: why for card, why in chosen}
    assert len(why) == len(chosen) == 6
    assert [key for key, value in why.items() if value == "best"] == ["0", "1"]
    assert [key for key, value in why.items() if value == "worst"] == ["2", "3"]
    few = [card.case_id for card, _ in choose_gallery(cards[:3], each=2)]
    assert few == ["0", "1", "2"]


def test_without_probabilities_the_error_is_the_share_of_wrong_pairs():
    scores, labels = [0.1, 0.5, 0.9, 0.5], [0, 0, 1, 1]
    cards = case_cards([scored(None, y, s) for s, y in zip(scores, labels, strict=True)])
    assert [card.error for card in cards] == [0.0, 0.5, 0.0, 0.5]
    assert case_cards([scored(None, 0, 0.3)])[0].error is None


def test_of_many_cases_the_page_shows_the_worst_and_a_random_share():
    cards = [SimpleNamespace(error=error) for error in np.linspace(0, 1, 1000)]
    shown = [card.error for card in chosen_cards(cards)]
    assert len(shown) == MAX_CARDS
    assert shown == sorted(shown)
    assert shown[-MAX_CARDS // 2 :] == [card.error for card in cards[-MAX_CARDS // 2 :]]
    assert 0.3 < np.mean(shown[: MAX_CARDS // 2]) < 0.6


def counts_of(scores, labels, num_bins=8):
    bins = (scores * num_bins).astype(int)
    both = [np.bincount(bins[labels == side], minlength=num_bins) for side in (0, 1)]
    return np.stack(both, axis=-1).astype(float)


def test_curves_on_the_grid_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 300)
    scores = np.floor(8 * np.clip(0.3 * labels + 0.6 * rng.random(300), 0, 0.999)) / 8
    counts = counts_of(scores, labels)[None]
    precision, recall, _ = precision_recall_curve(labels, scores)
    # Of the thresholds that reach a recall, the highest.
    expected = [precision[np.flatnonzero(recall >= max(r, 1e-9) - 1e-12)[-1]] for r in GRID]
    assert_allclose(precision_at_recall(counts)[0], expected)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert_allclose(tpr_at_fpr(counts)[0], np.interp(GRID, false, true))
    # Both curves of a resample without a class are unknown, and the others are not disturbed.
    empty = counts * [0, 1]
    assert np.isnan(tpr_at_fpr(np.concatenate([empty, counts]))[0]).all()
    items = counts[0].sum(-1)
    risk = risk_at_coverage(np.stack([items, counts[0, :, 1]], axis=-1)[None])[0]
    order = np.argsort(scores, kind="stable")
    running = np.cumsum(labels[order]) / np.arange(1, 301)
    ends = np.cumsum(items).astype(int) - 1
    at = [ends[np.flatnonzero(ends + 1 >= max(300 * c, 1e-9) - 1e-9)[0]] for c in GRID]
    assert_allclose(risk, running[at])


def test_a_band_is_the_interval_over_resampled_patients():
    # The mean of 400 fair coins: a binomial share.
    rng = np.random.default_rng(0)
    coins = rng.integers(0, 2, 400).astype(float)
    statistics = np.stack([1 - coins, coins], axis=-1)[:, None]
    band = curve_band(
        statistics,
        lambda sums: np.repeat(sums[:, 0, 1:] / sums[:, 0].sum(-1, keepdims=True), 3, axis=1),
        num_resamples=500,
        seed=0,
        strata=np.zeros(400),
        clusters=np.arange(400),
    )
    spread = 1.96 * np.sqrt(coins.mean() * (1 - coins.mean()) / 400)
    assert_allclose(band["low"], [coins.mean() - spread] * 3, atol=0.012)
    assert_allclose(band["high"], [coins.mean() + spread] * 3, atol=0.012)
    unknown = curve_band(
        statistics[:2],
        lambda sums: np.full((len(sums), 2), np.nan),
        num_resamples=5,
        seed=0,
        strata=np.zeros(2),
        clusters=np.arange(2),
    )
    assert unknown["low"] == [None, None]
