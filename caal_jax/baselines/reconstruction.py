"""Reconstruction by principal components: what a linear model of normal images cannot explain."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from caal_jax.baselines.trivial import Baseline

NUM_COMPONENTS = 16


class Components(NamedTuple):
    """Mean image (H, W, C) and orthonormal components (K, H, W, C), K at most 16."""

    mean: jax.Array
    axes: jax.Array


def _fit(images):
    mean = jnp.mean(images, axis=0)
    centred = (images - mean[None]).reshape(len(images), -1)
    _, sizes, axes = jnp.linalg.svd(centred, full_matrices=False)
    # Centring leaves one direction without meaning where there are few images.
    axes = jnp.where((sizes > 1e-5 * sizes[0])[:, None], axes, 0.0)[:NUM_COMPONENTS]
    return Components(mean, axes.reshape(-1, *mean.shape))


def _residual(state, images, foreground):
    centred = images - state.mean[None]
    with jax.default_matmul_precision("float32"):
        shares = jnp.einsum("nhwc,khwc->nk", centred, state.axes)
        explained = jnp.einsum("nk,khwc->nhwc", shares, state.axes)
    return jnp.where(foreground, jnp.mean(jnp.abs(centred - explained), axis=-1), 0.0)


# |x - its projection on the mean and the 16 leading principal components of normal images|, the
# mean over channels; for images in [0, 1] on a common grid. Fewer images give fewer components.
pca_residual = Baseline("PCA-16 residual", _fit, _residual)
