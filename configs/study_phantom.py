"""The study on the built-in phantom: made-up images, kept apart from those of real scans.

python -m caal_jax.study --config=configs/study_phantom.py

Budget of a cell: 150 steps at 64 x 64. 30 cells (--config.num_best=0): 36 minutes of one core
(docs/study.md).
"""

from caal_jax.defaults import training_config
from caal_jax.study.grid import study_config


def get_config():
    config = training_config()
    config.dataset = "mood"
    config.region = "brain"
    config.phantom_size = 64
    config.phantom_train = 40
    config.phantom_validation = 12
    config.phantom_test = 32
    config.image_size = 64
    config.num_steps = 150
    config.score_smoothing = 2.0
    return study_config(config)
