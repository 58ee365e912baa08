import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import average_precision_score, roc_auc_score

from caal_jax import metrics
from caal_jax.metrics.protocols import levels

RNG = np.random.default_rng(0)
MASKS = [RNG.random((6, 9, 8)) < share for share in (0, 0.1, 0, 0.02, 0.3)]
MASKS[1][:4] = False
MAPS = [RNG.beta(1 + 2 * mask, 4) for mask in MASKS]
AGGREGATIONS = {
    "mean": np.mean,
    "percentile_75": lambda p: np.percentile(p, 75),
    "top_quarter": lambda p: np.sort(p.ravel())[-int(p.size * 0.25) :].mean(),
}


def check(found, items, labels):
    assert {*found} == {*AGGREGATIONS}
    for name, aggregate in AGGREGATIONS.items():
        scores = [aggregate(item) for item in items]
        assert_allclose(found[name]["ap"], average_precision_score(labels, scores), rtol=1e-12)
        assert_allclose(found[name]["auroc"], roc_auc_score(labels, scores), rtol=1e-12)


def test_slices():
    labels = np.concatenate([[one.mean() > 5 / 128**2 for one in mask] for mask in MASKS])
    check(levels.slice_level(MAPS, MASKS), np.concatenate(MAPS), labels)


def test_a_slice_needs_more_than_five_of_128_squared():
    mask = np.zeros((3, 128, 128), bool)
    mask[0, 0, :5], mask[1, 0, :6] = True, True
    assert levels.slice_labels(mask).tolist() == [False, True, False]


def test_volumes():
    check(levels.volume_level(MAPS, MASKS), MAPS, [0, 1, 0, 1, 1])


@pytest.mark.parametrize("size", [1, 2])  # alone, the normal ones make batches without positives
def test_pixels_in_batches(size):
    counts = [metrics.bin_counts(*case) for case in zip(MAPS, MASKS, strict=True)]
    scores = [np.floor(one * 4096).ravel() for one in MAPS]
    want = []
    for seed in range(3):
        order = np.random.default_rng(seed=seed).permutation(5)
        values = []
        for start in range(0, 5, size):
            batch = order[start : start + size]
            labels = np.concatenate([MASKS[i].ravel() for i in batch])
            drawn = np.concatenate([scores[i] for i in batch])
            values.append(average_precision_score(labels, drawn) if labels.any() else 0.0)
        want.append(np.mean(values))
    found = levels.pixel_ap_in_batches(counts, batch_size=size, num_repeats=3)
    assert_allclose(found, want, rtol=1e-12)
