"""synthesis: a key and two healthy images in, a corrupted image and its label out."""

from caal_jax.synthesis.anomaly import Anomaly
from caal_jax.synthesis.fpi import fpi
from caal_jax.synthesis.pii import pii
from caal_jax.synthesis.probabilistic_pii import probabilistic_pii
from caal_jax.synthesis.source import jitter_source

__all__ = ["Anomaly", "fpi", "jitter_source", "pii", "probabilistic_pii"]
