"""localisers: images in, anomaly probabilities out; every network behind one contract."""

from caal_jax.localisers.fpi_wrn import fpi_wrn
from caal_jax.localisers.heads import HEADS, Head
from caal_jax.localisers.localiser import Localiser
from caal_jax.localisers.nsa_resnet18 import nsa_resnet18
from caal_jax.localisers.phiseg import phiseg
from caal_jax.localisers.probabilistic_unet import probabilistic_unet
from caal_jax.localisers.summary import summarise
from caal_jax.localisers.unet import unet

LOCALISERS = {
    "unet": unet,
    "fpi_wrn": fpi_wrn,
    "nsa_resnet18": nsa_resnet18,
    "phiseg": phiseg,
    "probabilistic_unet": probabilistic_unet,
}

__all__ = [
    "HEADS",
    "LOCALISERS",
    "Head",
    "Localiser",
    "fpi_wrn",
    "nsa_resnet18",
    "phiseg",
    "probabilistic_unet",
    "summarise",
    "unet",
]
