"""BUSI, breast ultrasound: trained on normal images, tested on normal, benign and malignant ones.

python -m caal_jax.main --config=configs/busi.py --config.data_dir=/data/BUSI

12 minutes on one CPU core. Measured on 76 normal training images, 53 of them from a second folder
(--config.extra_normals=/data/BUSI_256_normals), and 35 test images: pixel AP 0.101
(prevalence 0.044), image AUROC 0.826; equalised intensity alone reaches 0.031 and 0.511.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "busi"
    config.extra_normals = ""  # a second root of normal images, for training only
    config.foreground_threshold = 0.02  # shadows are dark and still part of the breast
    config.num_steps = 300
    return config
