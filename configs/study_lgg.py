"""The study on LGG: five tasks, with and without equalisation, three seeds, on two CPU cores.

python -m caal_jax.study --config=configs/study_lgg.py --config.data_dir=/data/LGG

Budget of a cell: 150 steps at 64 x 64. 54 cells with those of the best tasks: 55
minutes of one core on the subset of 60 slices (docs/study.md).
"""

from caal_jax.defaults import training_config
from caal_jax.study.grid import study_config


def get_config():
    config = training_config()
    config.dataset = "lgg"
    config.channel = "flair"
    config.image_size = 64
    config.num_steps = 150
    return study_config(config)
