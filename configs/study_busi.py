"""The study on BUSI: five tasks, with and without equalisation, three seeds, on two CPU cores.

python -m caal_jax.study --config=configs/study_busi.py --config.data_dir=/data/BUSI

Budget of a cell: 150 steps at 64 x 64. 54 cells with those of the best tasks: 54
minutes of one core on the subset of 61 images (docs/study.md).
"""

from caal_jax.defaults import training_config
from caal_jax.study.grid import study_config


def get_config():
    config = training_config()
    config.dataset = "busi"
    config.extra_normals = ""  # a second root of normal images, for training only
    config.foreground_threshold = 0.02
    config.image_size = 64
    config.num_steps = 150
    return study_config(config)
