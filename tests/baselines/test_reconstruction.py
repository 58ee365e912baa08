import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.decomposition import PCA

from caal_jax.baselines.reconstruction import pca_residual

RNG = np.random.default_rng(0)
NORMAL = RNG.random((40, 9, 8, 2)).astype(np.float32)
IMAGES = RNG.random((3, 9, 8, 2)).astype(np.float32)
FOREGROUND = RNG.random((3, 9, 8)) < 0.7


@pytest.mark.parametrize("lift", [lambda function: function, jax.jit], ids=["eager", "jit"])
def test_residual_is_that_of_scikit_learn(lift):
    found = lift(pca_residual.predict)(lift(pca_residual.fit)(NORMAL), IMAGES, FOREGROUND)
    reference = PCA(16, svd_solver="full").fit(NORMAL.reshape(40, -1))
    flat = IMAGES.reshape(3, -1)
    rest = flat - reference.inverse_transform(reference.transform(flat))
    want = np.abs(rest).reshape(IMAGES.shape).mean(-1)
    assert_allclose(found, np.where(FOREGROUND, want, 0), atol=1e-5)


def test_few_normal_images_are_explained_completely():
    few = NORMAL[:5]
    everywhere = np.ones((5, 9, 8), bool)
    state = pca_residual.fit(few)
    assert_allclose(pca_residual.predict(state, few, everywhere), 0, atol=1e-5)
    assert pca_residual.predict(state, IMAGES, everywhere[:3]).max() > 0.1
