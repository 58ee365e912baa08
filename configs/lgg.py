"""LGG (kaggle_3m): FLAIR slices of glioma patients; trained on slices without a lesion.

python -m caal_jax.main --config=configs/lgg.py --config.data_dir=/data/LGG

11 and a half minutes on one CPU core for the subset of 75 slices without a lesion. Measured there:
pixel AP 0.193 (prevalence 0.016), image AUROC 0.677; equalised intensity alone reaches 0.142 and
0.496.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "lgg"
    config.channel = "flair"  # or all
    config.num_steps = 300
    return config
