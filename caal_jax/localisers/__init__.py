"""localisers: images in, anomaly probabilities out; every network behind one contract."""

from caal_jax.localisers.localiser import Localiser
from caal_jax.localisers.unet import unet

__all__ = ["Localiser", "unet"]
