"""Head CT slices with and without a haemorrhage: trained on normal ones, tested per image.

python -m caal_jax.main --config=configs/head_ct.py --config.data_dir=/data/head_ct

Not yet measured. No pixel truth.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "head_ct"
    config.num_steps = 600
    return config
