"""preprocess: one case's grey levels in, a float32 image in [0, 1] and its foreground out."""

from caal_jax.preprocess.equalise import equalize_foreground, equalize_hist
from caal_jax.preprocess.intensity import foreground, rescale

__all__ = ["equalize_foreground", "equalize_hist", "foreground", "rescale"]
