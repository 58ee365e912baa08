"""Eight pretend CPU devices for every test; set before the first array is made."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
# A silent rank promotion is a bug in image code: (H, W) + (H, W, C) must not pass.
jax.config.update("jax_numpy_rank_promotion", "raise")
