import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import average_precision_score, roc_auc_score

from caal_jax import metrics
from caal_jax.errors import InputError
from caal_jax.metrics.protocols import nsa

RNG = np.random.default_rng(0)
MASKS = np.zeros((6, 32, 32), bool)
MASKS[1, 3:9, 4:9], MASKS[3, 0:9, 20:29], MASKS[4, 15:18, 12:20] = True, True, True
INNER = MASKS[:, 2:30, 2:30]
MAPS = 0.4 * INNER + 0.6 * RNG.random(INNER.shape)


def test_mvtec_of_objects_scores_the_crop_and_pads_with_zeros():
    padded = np.zeros(MASKS.shape)
    padded[:, 2:30, 2:30] = MAPS
    labels, means = [0, 1, 0, 1, 1, 0], MAPS.mean(axis=(1, 2))
    want = {
        "image_ap": average_precision_score(labels, means),
        "image_auroc": roc_auc_score(labels, means),
        "pixel_ap": average_precision_score(MASKS.ravel(), padded.ravel()),
        "pixel_auroc": roc_auc_score(MASKS.ravel(), padded.ravel()),
        "aupro": metrics.aupro(padded, MASKS),
    }
    found = nsa.mvtec(MAPS, MASKS)
    assert {*found} == {*want}
    for name, value in want.items():
        assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


def test_mvtec_of_textures_and_chest_xrays():
    found = nsa.mvtec(MAPS, INNER)
    assert_allclose(found["pixel_ap"], metrics.average_precision(MAPS, INNER))
    labels = [1, 0, 0, 1, 1, 0]
    padded_means = [np.pad(one, 2).mean() for one in MAPS]
    assert nsa.chest_xray(MAPS, labels) == {
        "image_ap": metrics.average_precision(padded_means, labels),
        "image_auroc": metrics.roc_auc(padded_means, labels),
    }


def test_crop_and_padding_are_the_centre():
    image = RNG.random((256, 256, 3))
    crop = nsa.center_crop(image)
    assert_array_equal(crop, image[16:240, 16:240])
    back = nsa.pad_to(crop[..., 0], (256, 256))
    assert_array_equal(back[16:240, 16:240], crop[..., 0])
    assert back.sum() == pytest.approx(crop[..., 0].sum())


@pytest.mark.parametrize("shape", [(33, 32), (29, 28)])
def test_other_maps_are_refused(shape):
    with pytest.raises(InputError, match="central crop"):
        nsa.mvtec(np.zeros((6, *shape)), MASKS)
