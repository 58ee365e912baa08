"""MIMIC-CXR-JPG, chest radiographs: trained on "No Finding", tested per image against findings.

python -m caal_jax.data.prepare --dataset=mimic_cxr --source=/data/mimic --output=/records
python -m caal_jax.main --config=configs/mimic_cxr.py --config.data_dir=/records

Not yet measured; meant for accelerators. No pixel truth. The published JPEGs are equalised
already.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "mimic_cxr"
    config.image_size = 256
    config.width, config.depth = 32, 6
    config.num_members, config.num_steps = 5, 50_000
    config.warmup_steps, config.checkpoint_steps = 500, 1000
    return config
