import numpy as np
import pytest
from numpy.testing import assert_allclose
from skimage.measure import label

from caal_jax import metrics
from caal_jax.errors import InputError
from caal_jax.metrics import RegionHistogram

RNG = np.random.default_rng(0)


def blobs(shape, num):
    mask = np.zeros(shape, bool)
    for centre in zip(*(RNG.integers(2, n - 2, num) for n in shape), strict=True):
        mask[tuple(slice(c - 1, c + RNG.integers(1, 4)) for c in centre)] = True
    return mask


MASKS = np.stack([blobs((16, 14), n) for n in (0, 1, 2, 5)])
MAPS = {
    "usual": 0.4 * MASKS + 0.6 * RNG.random(MASKS.shape),
    "few levels": np.round(0.2 * MASKS + 0.7 * RNG.random(MASKS.shape), 1),
    "float32": (0.4 * MASKS + 0.6 * RNG.random(MASKS.shape)).astype(np.float32),
}
VOLUME_MASKS = np.stack([blobs((9, 12, 10), n) for n in (0, 4)])
VOLUMES = 0.3 * VOLUME_MASKS + 0.7 * RNG.random(VOLUME_MASKS.shape)


def literal_aupro(maps, masks, fpr_limit):
    """Every distinct threshold, every component, one after the other."""
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        overlaps = []
        for hit, mask in zip(found, masks, strict=True):
            components = label(mask, connectivity=mask.ndim)
            overlaps += [hit[components == i].mean() for i in range(1, components.max() + 1)]
        points.append((found[~masks].mean(), np.mean(overlaps)))
    fpr, pro = np.array(points).T
    at_limit = np.interp(fpr_limit, fpr, pro)
    inside = fpr < fpr_limit
    x, y = np.append(fpr[inside], fpr_limit), np.append(pro[inside], at_limit)
    return np.trapezoid(y, x) / fpr_limit


@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("name", MAPS)
def test_aupro_matches_its_definition(name, fpr_limit):
    want = literal_aupro(MAPS[name], MASKS, fpr_limit)
    assert_allclose(metrics.aupro(MAPS[name], MASKS, fpr_limit), want, rtol=1e-10)
    signed = MAPS[name] - MAPS[name].dtype.type(0.5)
    assert_allclose(metrics.aupro(signed, MASKS, fpr_limit), want, rtol=1e-10)


def test_aupro_of_volumes():
    want = literal_aupro(VOLUMES, VOLUME_MASKS, 0.3)
    assert_allclose(metrics.aupro(VOLUMES, VOLUME_MASKS), want, rtol=1e-10)


def test_aupro_connectivity():
    # Two pixels that touch by a corner are one region: covering one covers half of it.
    mask = np.zeros((1, 4, 4), bool)
    mask[0, [0, 1], [0, 1]] = True
    scores = np.zeros((1, 4, 4))
    scores[0, 0, 0] = 1
    alone = mask.copy()
    alone[0, 3, 3] = True
    # One region: PRO 1/2 at FPR 0, then a line to (1, 1); with a second one it starts at 1/4.
    assert_allclose(metrics.aupro(scores, mask), 0.5 + 0.5 * 0.15)
    assert_allclose(metrics.aupro(scores, alone), 0.25 + 0.75 * 0.15)
    volume, values = np.zeros((1, 3, 3, 3), bool), np.zeros((1, 3, 3, 3))
    volume[0, [0, 1], [0, 1], [0, 1]] = True
    values[0, 0, 0, 0] = 1
    assert_allclose(metrics.aupro(values, volume), 0.5 + 0.5 * 0.15)


def test_aupro_in_the_clear_cases():
    assert metrics.aupro(MASKS.astype(float), MASKS) == 1
    assert_allclose(metrics.aupro(np.zeros(MASKS.shape), MASKS), 0.15)
    masks = np.stack([blobs((128, 128), 30) for _ in range(4)])
    assert abs(metrics.aupro(RNG.random(masks.shape), masks) - 0.15) < 0.03
    assert np.isnan(metrics.aupro(MAPS["usual"], np.zeros(MASKS.shape)))
    assert np.isnan(metrics.aupro(MAPS["usual"], np.ones(MASKS.shape)))
    assert np.isnan(metrics.aupro([], []))


def test_maps_of_different_sizes():
    maps, masks = [MAPS["usual"][2], VOLUMES[1][0]], [MASKS[2], VOLUME_MASKS[1][0]]
    both = metrics.aupro(maps, masks)
    assert_allclose(metrics.aupro(maps[::-1], masks[::-1]), both, rtol=1e-12)


@pytest.mark.parametrize(
    "scores",
    [MAPS["usual"], MAPS["few levels"], 1e-6 * MAPS["usual"], 1e-6 * ~MASKS, 1e-6 * MASKS],
    ids=["usual", "few levels", "one bin", "one bin, all wrong", "one bin, all right"],
)
@pytest.mark.parametrize("fpr_limit", [0.1, 0.3])
def test_streamed_aupro_is_that_of_bins_and_within_bounds(scores, fpr_limit):
    histogram = RegionHistogram(32)
    for one, mask in zip(scores, MASKS, strict=True):
        histogram.update(one, mask)
    rounded = np.minimum(np.floor(scores * 32), 31)
    want = metrics.aupro(rounded, MASKS, fpr_limit)
    assert_allclose(histogram.aupro(fpr_limit), want, rtol=1e-10)
    low, high = histogram.bounds(fpr_limit)
    assert low - 1e-12 <= metrics.aupro(scores, MASKS, fpr_limit) <= high + 1e-12


def test_streamed_bounds_are_narrow_and_merging_is_pooling():
    parts = [RegionHistogram().update(*case) for case in zip(MAPS["usual"], MASKS, strict=True)]
    merged = [RegionHistogram(), RegionHistogram()]
    for part, other in zip(parts, parts[::-1], strict=True):
        merged[0].merge(part)
        merged[1].merge(other)
    low, high = merged[0].bounds()
    assert high - low < 0.01
    assert_allclose(merged[0].aupro(), merged[1].aupro(), rtol=1e-12)
    assert_allclose(merged[0].aupro(), metrics.aupro(MAPS["usual"], MASKS), atol=high - low)


def test_streamed_volume_and_empty():
    # Every component adds 1, whatever its size.
    histogram = RegionHistogram(100)
    assert np.isnan([histogram.aupro(), *histogram.bounds()]).all()
    for scores, mask in zip(np.round(VOLUMES, 2), VOLUME_MASKS, strict=True):
        histogram.update(scores, mask)
    assert_allclose(histogram.statistics[:, 1].sum(), label(VOLUME_MASKS[1]).max())


def literal_aupimo(maps, masks, fpr_bounds, num_thresholds):
    normal = [m for m, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = np.linspace(np.min(normal), np.max(normal), num_thresholds)
    fpr = np.array([np.mean([(m >= t).mean() for m in normal]) for t in thresholds])
    lower, upper = (np.abs(fpr - bound).argmin() for bound in fpr_bounds)
    kept = slice(upper, lower + 1)
    scores = []
    for scored, mask in zip(maps, masks, strict=True):
        if not mask.any():
            scores.append(np.nan)
            continue
        recall = np.array([(scored[mask] >= t).mean() for t in thresholds[kept]])
        area = -np.trapezoid(recall, np.log(fpr[kept]))
        scores.append(min(1, area / np.log(fpr_bounds[1] / fpr_bounds[0])))
    return np.array(scores)


def test_aupimo_matches_its_definition():
    masks = np.stack([blobs((64, 64), n) for n in (0, 2, 5, 0, 0)])
    maps = (0.2 * masks + 0.8 * RNG.beta(2, 2, masks.shape)).astype(np.float32)
    bounds = (1e-3, 1e-2)
    want = literal_aupimo(maps, masks, bounds, 2000)
    found = metrics.aupimo(maps, masks, fpr_bounds=bounds, num_thresholds=2000)
    assert_allclose(found, want, rtol=1e-9)
    assert (np.isnan(found) == [True, False, False, True, True]).all()
    assert 0.05 < np.nanmean(found) < 0.95
    # Normal scores that are thresholds themselves count as found; the others are off the grid.
    maps = np.clip(np.round(maps * 256) / 256, 0, 1)
    maps[0, 0, :2] = 0, 1
    maps[1:3] += 1 / 512
    want = literal_aupimo(maps, masks, (1e-3, 0.9), 257)
    found = metrics.aupimo(maps, masks, fpr_bounds=(1e-3, 0.9), num_thresholds=257)
    assert_allclose(found, want, rtol=1e-9)


def test_aupimo_in_the_clear_cases():
    masks = np.zeros((3, 320, 320), bool)
    masks[2, 10:20, 10:20] = True
    maps = 0.5 * RNG.beta(2, 4, masks.shape)
    assert metrics.aupimo(maps + masks, masks)[2] > 0.99
    assert metrics.aupimo(maps - masks, masks)[2] == 0
    # Too few normal pixels for a rate of 1e-5, no normal image at all, and nothing to rank by.
    assert np.isnan(metrics.aupimo(maps[:, :30, :30], masks[:, :30, :30])).all()
    assert np.isnan(metrics.aupimo(maps[2:], masks[2:])).all()
    assert np.isnan(metrics.aupimo(np.zeros(masks.shape), masks)).all()


def test_aupro_leaves_out_only_what_cannot_matter():
    # All normal pixels tie just under a few, at a rate below the limit: none may be left out.
    masks = np.zeros((2, 32, 32), bool)
    masks[:, 4:8, 4:8] = True
    maps = np.where(masks, 0.4, 0.5 * (RNG.random(masks.shape) < 0.1))
    assert_allclose(metrics.aupro(maps, masks), literal_aupro(maps, masks, 0.3), rtol=1e-10)


def binned(maps, masks, num_bins):
    return np.stack([metrics.bin_counts(*case, num_bins) for case in zip(maps, masks, strict=True)])


def literal_streamed_aupimo(maps, masks, fpr_bounds, num_bins):
    """The straight lines in ln FPR through the edges of the bins, integrated finely."""
    normal = ~masks.any(axis=(1, 2))
    edges = np.arange(num_bins)[::-1] / num_bins
    fpr = np.array([np.mean(maps[normal] >= t) for t in edges])
    fine = np.linspace(*np.log(fpr_bounds), 200_001)
    scores = np.full(len(maps), np.nan)
    for index in np.flatnonzero(~normal):
        recall = np.array([np.mean(maps[index][masks[index]] >= t) for t in edges])
        heights = np.interp(fine, np.log(fpr[fpr > 0]), recall[fpr > 0])
        scores[index] = np.trapezoid(heights, fine) / (fine[-1] - fine[0])
    return scores


def test_streamed_aupimo_is_that_of_its_thresholds_and_within_bounds():
    masks = np.stack([blobs((64, 64), n) for n in (0, 2, 5, 0, 0)])
    maps = np.clip(0.2 * masks + 0.8 * RNG.beta(2, 2, masks.shape), 0, 1)
    bounds, normal = (1e-3, 1e-2), ~masks.any(axis=(1, 2))
    for num_bins in (24, 512):
        counts = binned(maps, masks, num_bins)
        want = literal_streamed_aupimo(maps, masks, bounds, num_bins)
        found = metrics.aupimo_from_counts(counts, fpr_bounds=bounds)
        assert_allclose(found, want, atol=1e-5)
        assert np.nanmax(found) > 0.01
    low, high = (metrics.aupimo_from_counts(counts, fpr_bounds=bounds, share=s) for s in (0, 1))
    exact = metrics.aupimo(maps, masks, fpr_bounds=bounds, num_thresholds=100_000)
    # The exact one ends at the rates nearest to the bounds, which moves it by this much at most.
    slack = 1 / (1e-3 * 3 * 64**2) / np.log(10)
    assert (low[~normal] - slack <= exact[~normal]).all()
    assert (exact[~normal] <= high[~normal] + slack).all()
    assert (high - low)[~normal].max() < 0.1


def test_streamed_aupimo_in_the_clear_cases():
    masks = np.zeros((3, 320, 320), bool)
    masks[2, 10:20, 10:20] = True
    maps = 0.5 * RNG.beta(2, 4, masks.shape)
    assert metrics.aupimo_from_counts(binned(maps + 0.5 * masks, masks, 4096))[2] > 0.99
    assert metrics.aupimo_from_counts(binned(maps * ~masks, masks, 4096))[2] == 0
    # Too few pixels or bins for the rates, no normal image, nothing to rank by, nothing at all.
    few = binned(maps[:, :30, :30], masks[:, :30, :30], 4096)
    assert np.isnan(metrics.aupimo_from_counts(few)).all()
    assert np.isnan(metrics.aupimo_from_counts(binned(maps[2:], masks[2:], 64))).all()
    assert np.isnan(metrics.aupimo_from_counts(binned(0 * maps, masks, 64))).all()


@pytest.mark.parametrize("metric", [metrics.aupro, metrics.aupimo])
def test_unusable_input_is_told(metric):
    with pytest.raises(InputError, match="4 maps"):
        metric(MAPS["usual"], MASKS[:3])
    with pytest.raises(InputError, match=r"maps\[0\]: found shape"):
        metric(MAPS["usual"][:, :-1], MASKS)
    with pytest.raises(InputError, match="rank 1"):
        metric(np.zeros((2, 5)), np.zeros((2, 5)))
    with pytest.raises(InputError, match=r"masks\[1\]: found values other"):
        metric(MAPS["usual"], MASKS + 1)
    broken = MAPS["usual"].copy()
    broken[2, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"maps\[2\]"):
        metric(broken, MASKS)
