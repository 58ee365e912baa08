import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from skimage.measure import label, regionprops

from caal_jax import metrics
from caal_jax.errors import InputError
from caal_jax.metrics.objects import candidates

RNG = np.random.default_rng(0)


def lesions(shape, num):
    mask = np.zeros(shape, bool)
    for centre in zip(*(RNG.integers(3, n - 3, num) for n in shape), strict=True):
        mask[tuple(slice(c - 1, c + RNG.integers(1, 4)) for c in centre)] = True
    return mask


MASKS = [lesions((40, 33), n) for n in (0, 2, 5, 0)] + [lesions((12, 20, 18), n) for n in (0, 3)]
MAPS = [0.3 * mask + 0.7 * RNG.random(mask.shape) for mask in MASKS]


@pytest.mark.parametrize("threshold", [0.2, 0.69, 0.72, 2.0])
def test_object_counts_match_their_definition(threshold):
    for scores, mask in zip(MAPS, MASKS, strict=True):
        true, found = (label(x, connectivity=mask.ndim) for x in (mask, scores >= threshold))
        want = (
            true.max(),
            sum((scores[true == i] >= threshold).any() for i in range(1, true.max() + 1)),
            sum(not mask[found == i].any() for i in range(1, found.max() + 1)),
        )
        assert metrics.object_counts(scores, mask, threshold) == want


def literal_candidates(scores, radius):
    """Pixels, not plateaus: every one against its window."""
    found = []
    for index in np.ndindex(scores.shape):
        window = scores[tuple(slice(max(0, i - radius), i + radius + 1) for i in index)]
        if scores[index] == window.max() > scores.min():
            found.append(index)
    return found


@pytest.mark.parametrize("radius", [1, 3])
def test_candidates_are_the_peaks(radius):
    for scores in (MAPS[1], MAPS[-1]):
        index, values = candidates(scores, radius)
        assert sorted(zip(*index, strict=True)) == literal_candidates(scores, radius)
        assert_array_equal(values, scores[index])


def test_a_plateau_is_one_candidate_near_its_centre():
    scores = np.zeros((20, 20))
    scores[3:8, 4:9] = 0.7
    scores[15, 2:6] = 0.4
    index, values = candidates(scores, 2)
    assert_array_equal(values, [0.7, 0.4])
    assert (index[0][0], index[1][0]) == (5, 6)
    assert index[0][1] == 15
    assert index[1][1] in (3, 4)
    assert candidates(np.full((5, 5), 0.2), 2)[1].size == 0


def literal_froc(maps, masks, rates, radius):
    """Every threshold, every lesion, every candidate, one after the other."""
    points = [
        (scores, label(mask, connectivity=mask.ndim), literal_candidates(scores, radius))
        for scores, mask in zip(maps, masks, strict=True)
    ]
    reached = np.zeros(len(rates))
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps])):
        hits, alarms, total = 0, 0, 0
        for scores, true, peaks in points:
            kept = [true[peak] for peak in peaks if scores[peak] >= threshold]
            hits += len({at for at in kept if at})
            alarms += sum(at == 0 for at in kept)
            total += true.max()
        for number, rate in enumerate(rates):
            if alarms / len(maps) <= rate:
                reached[number] = max(reached[number], hits / total)
    return reached.mean()


@pytest.mark.parametrize("rates", [(0,), (0.25, 0.5, 1, 2, 4, 8), (1000,)])
def test_froc_matches_its_definition(rates):
    maps = [np.round(scores, 2) + 1e-4 * RNG.random(scores.shape) for scores in MAPS[:4]]
    want = literal_froc(maps, MASKS[:4], rates, 2)
    assert_allclose(metrics.froc(maps, MASKS[:4], rates=rates, radius_px=2), want, rtol=1e-12)


def test_froc_by_hand():
    masks, maps = np.zeros((2, 9, 20), bool), np.zeros((2, 9, 20))
    masks[0, 1, 1], masks[0, 1, 18] = True, True
    maps[0, 1, 1], maps[0, 7, 10], maps[1, 4, 4], maps[1, 4, 18] = 0.8, 0.6, 0.9, 0.2
    # One lesion at 0.8 after one alarm (1/2 per image), the other never.
    assert metrics.froc(maps, masks, rates=[0.4], radius_px=1) == 0
    assert metrics.froc(maps, masks, rates=[0.5], radius_px=1) == 0.5
    assert metrics.froc(maps, masks, rates=[0, 8], radius_px=1) == 0.25
    assert np.isnan(metrics.froc(maps, 0 * masks, rates=[0]))
    assert np.isnan(metrics.froc([], []))
    assert metrics.froc(masks.astype(float), masks) == 1
    # A constant map shows nothing, so it must not find everything without an alarm.
    assert metrics.froc(np.ones(maps.shape), masks) == 0


def test_streamed_froc_is_that_of_rounded_scores_in_any_order():
    found = [
        metrics.detections(scores, mask, radius_px=8)
        for scores, mask in zip(MAPS, MASKS, strict=True)
    ]
    counts = [metrics.froc_counts(one, 4096) for one in found]
    pooled = np.sum(counts, axis=0)
    assert (np.sum(counts[::-1], axis=0) == pooled).all()
    assert pooled[0, 1] > 0
    assert_array_equal(pooled[0], [6, sum((d.lesion_scores == -np.inf).sum() for d in found)])
    assert_allclose(metrics.froc_from_counts(pooled), metrics.froc(MAPS, MASKS, radius_px=8))
    coarse = np.stack([metrics.froc_counts(one, 16) for one in found])
    rounded = [
        d._replace(
            lesion_scores=np.floor(d.lesion_scores * 16) / 16,
            alarm_scores=np.floor(d.alarm_scores * 16) / 16,
        )
        for d in found
    ]
    fine = np.sum([metrics.froc_counts(one, 4096) for one in rounded], axis=0)
    assert_allclose(metrics.froc_from_counts(coarse.sum(0)), metrics.froc_from_counts(fine))
    alarms, sensitivity = metrics.froc_curve_from_counts(pooled)
    assert alarms[-1] == sum(d.alarm_scores.size for d in found) / 6
    assert_allclose(sensitivity[-1], 1 - pooled[0, 1] / pooled[:, 1].sum())
    low, high = metrics.bootstrap_interval(coarse, metrics.froc_from_counts, seed=0)
    assert low < metrics.froc_from_counts(coarse.sum(0)) < high


def test_detections_know_the_sizes():
    mask, scores = np.zeros((9, 9), bool), np.zeros((9, 9))
    mask[1, 1], mask[5:8, 5:8] = True, True
    scores[5:8, 5:8], scores[1, 7] = 0.5, 1.0
    found = metrics.detections(scores, mask, radius_px=1)
    assert_array_equal(found.lesion_sizes, [1, 9])
    assert_array_equal(found.lesion_scores, [-np.inf, 0.5])
    assert_array_equal(found.alarm_scores, [1.0])


def test_pointing_game():
    scores, mask = np.zeros((4, 4)), np.zeros((4, 4), bool)
    mask[0, :2] = True
    assert metrics.pointing_game(scores, mask) == 2 / 16
    scores[0, 1] = 0.1
    assert metrics.pointing_game(scores, mask) == 1
    scores[2, 2] = 0.2
    assert metrics.pointing_game(scores, mask) == 0
    assert np.isnan(metrics.pointing_game(scores, 0 * mask))


def test_boxes_of_components_match_skimage():
    mask = MASKS[2]
    found = metrics.boxes_of(mask)
    want = [r.bbox for r in regionprops(label(mask, connectivity=2))]
    assert_array_equal(found, [(x, y, right - x, low - y) for y, x, low, right in want])
    assert metrics.boxes_of(np.zeros((3, 3), bool)).shape == (0, 4)


def test_box_iou_matches_filled_boxes():
    boxes = np.stack([*RNG.integers(0, 20, (2, 12)), *RNG.integers(1, 9, (2, 12))], axis=-1)
    filled = np.zeros((12, 30, 30), bool)
    for mask, (x, y, width, height) in zip(filled, boxes, strict=True):
        mask[y : y + height, x : x + width] = True
        assert_array_equal(metrics.boxes_of(mask), [(x, y, width, height)])
    filled = filled.reshape(12, -1)
    both = (filled[:, None] & filled[None]).sum(-1)
    want = both / (filled[:, None] | filled[None]).sum(-1)
    assert_allclose(metrics.box_iou(boxes, boxes), want)
    assert_allclose(metrics.box_iou(boxes[:3], boxes), want[:3])


def test_box_recall():
    scores = np.zeros((20, 20))
    scores[2:6, 2:6], scores[12:14, 12:18] = 0.9, 0.6
    boxes = [(2, 2, 4, 4), (12, 12, 6, 6), (15, 0, 3, 3)]  # IoU 1, 1/3 and 0
    assert_allclose(metrics.box_recall(scores, boxes, 0.5), [2 / 3] * 3 + [1 / 3] * 2)
    assert_allclose(metrics.box_recall(scores, boxes, 0.8, ious=[0.1]), [1 / 3])
    assert_allclose(metrics.box_recall(scores, boxes, 1.0, ious=[0.1]), [0])
    assert np.isnan(metrics.box_recall(scores, [], 0.5)).all()


def test_unusable_input_is_told():
    with pytest.raises(InputError, match="width and height"):
        metrics.box_recall(MAPS[0], [(2, 3, 0, 4)], 0.5)
    with pytest.raises(InputError, match="width and height"):
        metrics.box_iou([(2, 3, np.nan, 4)], [(2, 3, 4, 4)])
    with pytest.raises(InputError, match="shape"):
        metrics.detections(MAPS[0][:-1], MASKS[0])
    with pytest.raises(InputError, match="NaN"):
        metrics.pointing_game(np.full((3, 3), np.nan), np.ones((3, 3)))
    with pytest.raises(InputError, match="0 to 2"):
        metrics.froc_counts(metrics.Detections(np.array([2.0, 0.0]), np.ones(2), np.empty(0)))
