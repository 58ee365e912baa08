"""Eight pretend CPU devices for every test; set before the first array is made."""

import atexit
import shutil
import tempfile

import jax

jax.config.update("jax_num_cpu_devices", 8)
# A silent rank promotion is a bug in image code: (H, W) + (H, W, C) must not pass.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests train the same tiny network many times; each program is compiled once per session.
_CACHE = tempfile.mkdtemp(prefix="caal_jax_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
