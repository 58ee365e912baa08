import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.signal import savgol_filter

from caal_jax import metrics
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
IMAGE = RNG.beta(1, 8, (37, 29)).astype(np.float32)
VOLUME = RNG.beta(1, 8, (50, 13, 11))


@pytest.mark.parametrize("scores", [IMAGE, VOLUME], ids=["image", "volume"])
def test_scores_match_their_definitions(scores):
    ordered = np.sort(scores.ravel().astype(np.float64))
    quartile = np.percentile(ordered, 75)
    want = {
        "mean": ordered.mean(),
        "mean_above_75": ordered[ordered > quartile].mean(),
        "percentile_75": quartile,
        "top_quarter": ordered[-int(ordered.size * 0.25) :].mean(),
        "top_1_percent": ordered[-int(ordered.size * 0.01) :].mean(),
        "largest": ordered[-1],
    }
    found = metrics.image_scores(scores)
    assert {*found} == {*want} | ({"fpi_subject"} if scores.ndim == 3 else set())
    for name, value in want.items():
        assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("depth", "window"), [(40, 5), (100, 11), (256, 25), (39, 1), (1, 1)])
def test_fpi_subject_matches_the_reference(depth, window):
    volume = RNG.random((depth, 3, 4))
    slices = volume.mean(axis=(1, 2))
    if window > 1:
        slices = savgol_filter(slices, window, 3)
    want = np.mean(sorted(slices)[int(depth * 0.75) :])
    assert_allclose(metrics.fpi_subject(volume), want, rtol=1e-12)


def test_degenerate_maps():
    for name, value in metrics.image_scores(np.full((2, 3), 0.3)).items():
        assert_allclose(value, 0.3, err_msg=name)
    assert metrics.image_scores(np.array([[0.25]]))["top_quarter"] == 0.25
    with pytest.raises(InputError, match="NaN"):
        metrics.image_scores(np.full((2, 2), np.nan))
