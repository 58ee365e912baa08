"""The study on the built-in phantom: made-up images, kept apart from those of real scans.

python -m caal_jax.study --config=configs/study_phantom.py

Budget of a cell: 150 steps at 64 x 64. Not yet measured in full.
"""

from caal_jax.defaults import training_config
from caal_jax.study.grid import study_config


def get_config():
    base = training_config()
    base.dataset = "mood"
    base.region = "brain"
    base.phantom_size = 64
    base.phantom_train = 40
    base.phantom_validation = 12
    base.phantom_test = 32
    base.image_size = 64
    base.num_steps = 150
    base.score_smoothing = 2.0
    return study_config(base)
