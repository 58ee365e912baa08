"""The study on MOOD's brain or abdomen volumes, meant for accelerators; not yet measured.

python -m caal_jax.study --config=configs/study_mood.py --config.base.data_dir=/data/mood
"""

from caal_jax.defaults import training_config
from caal_jax.study.grid import study_config


def get_config():
    base = training_config()
    base.dataset = "mood"
    base.region = "brain"  # or abdomen
    base.image_size = 256
    base.width = 32
    base.depth = 6
    base.num_steps = 10_000
    base.warmup_steps = 500
    base.checkpoint_steps = 1000
    base.score_smoothing = 6.0
    return study_config(base)
