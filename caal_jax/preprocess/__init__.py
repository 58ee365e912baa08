"""preprocess: one case's grey levels in, a float32 image in [0, 1] and its foreground out."""

from caal_jax.preprocess.adaptive import equalize_adapthist
from caal_jax.preprocess.equalise import equalize_foreground, equalize_hist, equalize_like
from caal_jax.preprocess.intensity import foreground, rescale
from caal_jax.preprocess.opencv import clahe_opencv, equalize_hist_opencv

__all__ = [
    "clahe_opencv",
    "equalize_adapthist",
    "equalize_foreground",
    "equalize_hist",
    "equalize_hist_opencv",
    "equalize_like",
    "foreground",
    "rescale",
]
