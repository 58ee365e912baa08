"""DeepLesion, CT slices: trained far from the lesions of each series, tested on boxed key slices.

python -m caal_jax.data.prepare --dataset=deeplesion --source=/data/DeepLesion --output=/records
python -m caal_jax.main --config=configs/deeplesion.py --config.data_dir=/records

Not yet measured; meant for accelerators. "Normal" is not certified by anybody.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "deeplesion"
    config.image_size = 256
    config.width, config.depth = 32, 6
    config.num_members, config.num_steps = 5, 50_000
    config.warmup_steps, config.checkpoint_steps = 500, 1000
    return config
