"""LIDC-IDRI, chest CT: trained on slices far from every reader's mark, tested on whole scans.

python -m caal_jax.data.prepare --dataset=lidc --source=/data/LIDC-IDRI --output=/records
python -m caal_jax.main --config=configs/lidc.py --config.data_dir=/records

Not yet measured; meant for accelerators. Needs pip install 'caal_jax[dicom,records]'.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "lidc"
    config.image_size = 256
    config.width, config.depth = 32, 6
    config.num_members, config.num_steps = 5, 50_000
    config.warmup_steps, config.checkpoint_steps = 500, 1000
    return config
