"""What a program does about the CPU it starts on."""

import functools
import json
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about cores and pages")

CHILD = """
import json, resource
import jax
from caal_jax import parallel

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    text = b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

lost = [faults() for _ in range(2)]
parallel.keep_memory()
kept = [faults() for _ in range(2)]
parallel.start()
print(json.dumps([jax.local_device_count(), lost[1], kept[1]]))
"""


@functools.cache
def begin(**settings):
    ours = ("JAX_", "XLA_", "SLURM_", "TPU_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment = {**kept, "JAX_PLATFORMS": "cpu", **settings}
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        ({}, min(8, len(os.sched_getaffinity(0)))),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
    ],
)
def test_each_core_is_a_device_unless_it_is_said_otherwise(settings, devices):
    assert begin(**settings)[0] == devices


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for the allocator of glibc")
def test_memory_that_was_freed_is_used_again_without_asking_the_system():
    _, lost, kept = begin()
    pages = 2**26 // os.sysconf("SC_PAGESIZE")
    assert lost > 0.9 * pages
    assert kept < 0.01 * pages
