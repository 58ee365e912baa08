"""JSRT, chest films: trained on films without a nodule, tested on both; the truth is a disc.

python -m caal_jax.main --config=configs/jsrt.py --config.data_dir=/data/JSRT

Not yet measured. 12-bit films of 2048 x 2048; 93 of them normal.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "jsrt"
    config.image_size = 256
    config.num_steps = 2000
    return config
