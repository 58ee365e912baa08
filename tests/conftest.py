"""Eight pretend CPU devices for every test; set before the first array is made."""

import atexit
import json
import shutil
import socket
import sys
import tempfile

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# A silent rank promotion is a bug in image code: (H, W) + (H, W, C) must not pass.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests train the same tiny network many times; each program is compiled once per session.
_CACHE = tempfile.mkdtemp(prefix="caal_jax_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _stay_offline(event, arguments):
    """Nothing that is tested may need a network: only this machine can be talked to."""
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if host not in (None, "", "localhost", "127.0.0.1", "::1", b"localhost", socket.gethostname()):
        raise PermissionError(f"a test reaches for the network: {event} {host!r}")


sys.addaudithook(_stay_offline)


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory):
    """The workdir of a finished run for brain volumes: two members of random weights."""
    from caal_jax import files
    from caal_jax.checkpoint import Checkpoints
    from caal_jax.confidence.calibration import Calibration, ImageCalibration
    from caal_jax.defaults import training_config
    from caal_jax.localise import Decisions, new_models

    workdir = tmp_path_factory.mktemp("untrained")
    config = training_config()
    config.dataset, config.region, config.equalise = "mood", "brain", "none"
    config.image_size, config.width, config.depth = 32, 4, 2
    config.num_members, config.dropout, config.augment = 2, 0.2, "mirror"
    config.score_fraction = 0.05
    rng = np.random.default_rng(0)

    def lively(array):
        # New networks have an empty head, which answers the same everywhere.
        array = np.asarray(array)
        noise = rng.normal(0, 0.4, array.shape)
        return np.float32(array + noise) if array.dtype == np.float32 else array

    quick = {"xla_backend_optimization_level": 0}
    new = jax.jit(lambda: new_models(config, 1), compiler_options=quick)
    members = jax.tree.map(lively, new())
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(config.num_steps, members=[0, 1], model=members)
    decisions = Decisions(
        pixel=Calibration(1.7, 0.0),
        image=ImageCalibration(9.0, -6.0),
        healthy_scores=(0.2, 0.6, 0.7, 0.8),
        threshold=0.6,
        false_positive_rate=0.2,
    )
    files.write_text(workdir / "config.json", config.to_json())
    files.write_text(workdir / "training.json", json.dumps({"channels": 1}))
    files.write_text(workdir / "decisions.json", decisions.to_json())
    return workdir
