"""synthesis: a key and two healthy images in, a corrupted image and its label out."""

from caal_jax.synthesis.anomaly import Anomaly
from caal_jax.synthesis.cutpaste import cutpaste, cutpaste_3way, cutpaste_scar, cutpaste_union
from caal_jax.synthesis.fpi import fpi
from caal_jax.synthesis.fpi_blob import fpi_blob
from caal_jax.synthesis.nsa import calibrate_logistic, nsa
from caal_jax.synthesis.nsa_presets import nsa_preset
from caal_jax.synthesis.pii import pii
from caal_jax.synthesis.probabilistic_pii import probabilistic_pii
from caal_jax.synthesis.source import jitter_source

# By the names that configs and command lines use.
_TASKS = (
    cutpaste,
    cutpaste_scar,
    cutpaste_union,
    fpi,
    fpi_blob,
    pii,
    nsa,
    probabilistic_pii,
)
TASKS = {task.__name__: task for task in _TASKS}

__all__ = [
    "TASKS",
    "Anomaly",
    "calibrate_logistic",
    "cutpaste",
    "cutpaste_3way",
    "cutpaste_scar",
    "cutpaste_union",
    "fpi",
    "fpi_blob",
    "jitter_source",
    "nsa",
    "nsa_preset",
    "pii",
    "probabilistic_pii",
]
