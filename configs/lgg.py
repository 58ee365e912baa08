"""LGG (kaggle_3m): FLAIR slices of glioma patients; trained on slices without a lesion.

python -m caal_jax.main --config=configs/lgg.py --config.data_dir=/data/LGG
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "lgg"
    config.channel = "flair"  # or all
    config.num_steps = 300
    return config
