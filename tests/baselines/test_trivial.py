import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from skimage.exposure import equalize_hist

from caal_jax.baselines.trivial import equalised_intensity, mean_template, raw_intensity

RNG = np.random.default_rng(0)
NORMAL = RNG.random((12, 16, 16, 2)).astype(np.float32)
IMAGES = RNG.random((3, 16, 16, 2)).astype(np.float32)
FOREGROUND = RNG.random((3, 16, 16)) < 0.7
BASELINES = [raw_intensity, equalised_intensity, mean_template]


def reference(name):
    if name == "raw intensity":
        return IMAGES.mean(-1)
    if name == "mean template":
        return (np.abs(IMAGES - NORMAL.mean(0)) / (NORMAL.std(0) + 0.01)).mean(-1)
    return np.stack(
        [
            np.mean([equalize_hist(x[..., c], mask=inside) for c in range(2)], axis=0)
            for x, inside in zip(IMAGES, FOREGROUND, strict=True)
        ]
    )


# Equalisation takes seconds to compile: once, for one shape.
PREDICT = {baseline.name: jax.jit(baseline.predict) for baseline in BASELINES}


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_maps_match_their_definition(baseline):
    maps = PREDICT[baseline.name](baseline.fit(NORMAL), IMAGES, FOREGROUND)
    assert maps.dtype == np.float32
    want = np.where(FOREGROUND, reference(baseline.name), 0)
    assert_allclose(maps, want, rtol=1e-4, atol=1e-5)
    if baseline is not equalised_intensity:
        assert_allclose(baseline.predict(baseline.fit(NORMAL), IMAGES, FOREGROUND), maps, rtol=1e-6)


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_no_image_sees_another(baseline):
    state = baseline.fit(NORMAL)
    others = IMAGES[[2, 1, 0]] * np.float32(0.5)
    others[1] = IMAGES[1]
    found = [PREDICT[baseline.name](state, x, FOREGROUND)[1] for x in (IMAGES, others)]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_bright_lesion_stands_out(baseline):
    normal = 0.3 + 0.05 * NORMAL
    images = normal[:3].copy()
    images[0, 4:7, 4:7] = 0.9
    everywhere = np.ones((3, 16, 16), bool)
    found = np.array(PREDICT[baseline.name](baseline.fit(normal), images, everywhere)[0])
    lesion = found[4:7, 4:7].min()
    found[4:7, 4:7] = 0
    assert lesion > found.max()
