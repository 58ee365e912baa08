import numpy as np
import pytest
from numpy.testing import assert_allclose
from skimage.measure import label, regionprops

from caal_jax.confidence.summaries import find_regions, image_uncertainty

RNG = np.random.default_rng(0)


def test_image_uncertainty_matches_a_sort():
    uncertainty = RNG.random((6, 9, 7)).astype(np.float32)
    foreground = RNG.random(uncertainty.shape) < 0.4
    inside = np.sort(np.float64(uncertainty[foreground]))
    found = image_uncertainty(uncertainty, foreground)
    assert found.keys() == {"mean", "top", "max"}
    assert_allclose(found["mean"], inside.mean(), rtol=1e-6)
    assert_allclose(found["top"], inside[-int(np.ceil(inside.size / 4)) :].mean(), rtol=1e-6)
    assert_allclose(found["max"], inside[-1])
    loud = np.where(foreground, uncertainty, np.float32(9))
    assert image_uncertainty(loud, foreground) == found
    nothing = image_uncertainty(uncertainty, np.zeros(foreground.shape, bool))
    assert nothing == {"mean": 0, "top": 0, "max": 0}
    here = RNG.random(uncertainty.shape) < 0.1
    found = image_uncertainty(uncertainty, foreground, found=here)
    assert_allclose(found["found"], uncertainty[foreground & here].mean(), rtol=1e-6)
    assert image_uncertainty(uncertainty, foreground, found=~foreground)["found"] == 0


@pytest.mark.parametrize("shape", [(40, 30), (9, 20, 16)])
def test_regions_match_scikit_image(shape):
    # Sparse enough that regions of one pixel, touching corners, and empty borders all occur.
    probability, epistemic, aleatoric = RNG.random((3, *shape)).astype(np.float32)
    probability[0] = probability[-1] = 0
    spacing = (0.5, 2.0, 3.0)[: len(shape)]
    maps = {"epistemic": epistemic, "aleatoric": aleatoric}
    found = find_regions(probability, maps, threshold=0.93, spacing_mm=spacing)
    stack = np.stack([probability, epistemic, aleatoric], -1)
    wanted = regionprops(label(probability >= 0.93, connectivity=len(shape)), stack)
    assert len(found) == len(wanted) > 5
    assert [region.size_px for region in found] == sorted(
        (region.size_px for region in found), reverse=True
    )
    few = find_regions(probability, maps, threshold=0.93, most=4)
    assert [one.centre_px for one in few] == [one.centre_px for one in found[:4]]
    by_centre = {tuple(np.round(region.centre_px, 6)): region for region in found}
    for one in wanted:
        region = by_centre[tuple(np.round(one.centroid, 6))]
        assert region.size_px == one.area
        assert_allclose(region.size_mm, one.area * np.prod(spacing))
        low, high = np.split(np.array(one.bbox), 2)
        assert region.box_px == tuple(zip(low.tolist(), high.tolist(), strict=True))
        assert list(region.means) == ["probability", "epistemic", "aleatoric"]
        assert_allclose(list(region.means.values()), one.intensity_mean, rtol=1e-5)
        assert_allclose(region.peak, one.intensity_max[0])


def test_nothing_found_is_an_empty_list_and_the_threshold_counts():
    flat = np.full((4, 5), 0.5, np.float32)
    assert find_regions(flat - 0.01, {}) == []
    (whole,) = find_regions(flat, {})
    assert (whole.size_px, whole.size_mm, whole.box_px) == (20, 20.0, ((0, 4), (0, 5)))
