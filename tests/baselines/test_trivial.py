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


@pytest.mark.parametrize("lift", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_maps_match_their_definition(baseline, lift):
    state = lift(baseline.fit)(NORMAL)
    maps = lift(baseline.predict)(state, IMAGES, FOREGROUND)
    assert maps.dtype == np.float32
    want = np.where(FOREGROUND, reference(baseline.name), 0)
    assert_allclose(maps, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_no_image_sees_another(baseline):
    state = baseline.fit(NORMAL)
    together = baseline.predict(state, IMAGES, FOREGROUND)
    alone = baseline.predict(state, IMAGES[1:2], FOREGROUND[1:2])
    assert_allclose(together[1:2], alone, rtol=0, atol=1e-6)


def test_bright_lesion_stands_out():
    normal = 0.3 + 0.05 * RNG.random((12, 16, 16, 1)).astype(np.float32)
    image = normal[:1].copy()
    image[0, 4:7, 4:7] = 0.9
    everywhere = np.ones((1, 16, 16), bool)
    for baseline in BASELINES:
        found = np.array(baseline.predict(baseline.fit(normal), image, everywhere)[0])
        lesion = found[4:7, 4:7].min()
        found[4:7, 4:7] = 0
        assert lesion > found.max(), baseline.name
