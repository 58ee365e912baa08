"""ChestX-ray14, chest radiographs of adults: trained on "No Finding", tested on the rest; boxes.

python -m caal_jax.main --config=configs/chestxray14.py --config.data_dir=/data/ChestXray14

Not yet measured; meant for accelerators. --config.sex=F or M for PII's and NSA's subsets.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "chestxray14"
    config.sex = "all"  # or M, F
    config.image_size = 256
    config.width, config.depth = 32, 6
    config.num_members, config.num_steps = 5, 50_000
    config.warmup_steps, config.checkpoint_steps = 500, 1000
    return config
