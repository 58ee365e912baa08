"""MVTec AD, photographs: one category, trained on good products.

python -m caal_jax.main --config=configs/mvtec.py --config.data_dir=/data/mvtec \\
    --config.category=hazelnut

Not yet measured.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "mvtec"
    config.category = ""  # "" where data_dir is the folder of one category
    config.image_size = 256
    config.num_steps = 2000
    return config
