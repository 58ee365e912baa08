"""The study on MOOD's brain or abdomen volumes, meant for accelerators; not yet measured.

python -m caal_jax.study --config=configs/study_mood.py --config.data_dir=/data/mood
"""

from caal_jax.defaults import training_config
from caal_jax.study.grid import study_config


def get_config():
    config = training_config()
    config.dataset = "mood"
    config.region = "brain"  # or abdomen
    config.image_size = 256
    config.width = 32
    config.depth = 6
    config.num_steps = 10_000
    config.warmup_steps = 500
    config.checkpoint_steps = 1000
    config.score_smoothing = 6.0
    return study_config(config)
