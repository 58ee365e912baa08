"""Devices and processes: where members of an ensemble run, and how functions are lifted.

The leading axis of everything here is devices. With more devices than members each member owns a
group of devices that share its batch; with fewer, the members go in rounds. The numerics are
handed in and never see more than an axis name and its groups.

Several processes (one per machine, say) train one ensemble over all their devices. Each holds only
the rows of the device axis that are its own, and of each batch reads only those; the training set
itself, unless it stays in records, each loads as a whole. Process 0 writes, calibrates and
evaluates.
"""

import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
import zlib
from collections import Counter
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from caal_jax import files
from caal_jax.errors import InputError

AXIS = "devices"
# For all processes to start. Where images are pulled first, say, it may take longer.
JOIN_SECONDS = int(os.environ.get("CAAL_JOIN_SECONDS", "40"))
GRACE_SECONDS = 2
MOST_CPU_DEVICES = 8  # more were not tried
HEARTBEAT_SECONDS = 20  # without a sign of life from a process, the others end
WAIT_SECONDS = 30 * 24 * 3600  # for process 0 to evaluate, at the end of the others


def start():
    """Joins the processes of a run; call before anything touches a device. Returns their number.

    Plain environment variables, for any launcher: JAX_COORDINATOR_ADDRESS (host:port of process
    0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. SLURM (srun with several tasks) and TPU pods (several
    TPU_WORKER_HOSTNAMES, or a Cloud TPU VM among several) are recognised without them; of pods that
    follows JAX's own detection and was not tried on one. Otherwise this process stays alone, and
    each of its CPU cores becomes a device.

    Raises: `InputError` where the variables cannot be meant or the processes do not have equally
    many devices. Where not all come within JOIN_SECONDS, this process ends with status 1 and a
    word about why: JAX itself would abort it, without one.
    """
    address, numbers = _place()
    if address is None and not _several_tasks():
        _take_cores()
        return 1
    seconds = {
        "initialization_timeout": 2 * JOIN_SECONDS,  # the clock here is the one that counts
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": WAIT_SECONDS,
    }
    clock = threading.Timer(JOIN_SECONDS, _give_up, (address, numbers))
    clock.daemon = True
    clock.start()
    if address is None:
        jax.distributed.initialize(**seconds)
    else:
        count, number = numbers
        print(f"process {number} of {count} meets the others at {address}", file=sys.stderr)
        jax.distributed.initialize(
            address, count, number, cluster_detection_method="deactivate", **seconds
        )
    counts = Counter(device.process_index for device in all_devices())
    clock.cancel()
    if len(set(counts.values())) > 1:
        raise InputError(
            "the devices of the processes",
            found=", ".join(f"{counts[n]} of process {n}" for n in sorted(counts)),
            expected="as many of each",
            remedy="Hide the others, as with CUDA_VISIBLE_DEVICES.",
        )
    return jax.process_count()


def _take_cores():
    """Makes a device of every core, unless it was said how many CPU devices there are to be.

    Most of JAX's convolutions are computed by one core, whatever the number of cores of the device.
    """
    said = "device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices == -1 and not said:
        ours = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))(0)
        jax.config.update("jax_num_cpu_devices", min(MOST_CPU_DEVICES, len(ours)))


def keep_memory():
    """Lets this process keep what it frees, up to 1 GiB, where the C library is glibc.

    Else the scratch memory of each training step on a CPU is returned to the system, and comes back
    in thousands of pages that are mapped one by one: a sixth of the step's work.
    """
    if platform.libc_ver()[0] == "glibc":
        never_map, trim_above = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
        library = ctypes.CDLL(None)
        library.mallopt(never_map, 0)
        library.mallopt(trim_above, 2**30)


def _place():
    """The plain variables: (address, (number of processes, number of this one)) or (None, ())."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, *numbers = given = [os.environ.get(name, "") for name in names]
    if not any(given):
        return None, ()
    host, _, port = address.rpartition(":")
    whole = host and all(part.isdecimal() for part in (port, *numbers))
    if not whole or int(port) >= 2**16 or int(numbers[1]) >= int(numbers[0]):
        raise InputError(
            ", ".join(names),
            found=", ".join(map(repr, given)),
            expected="host:port of process 0, the number of processes, and a number below it",
            remedy="Set all three, or none to stay alone.",
        )
    if numbers[1] == "0":
        try:
            socket.create_server(("", int(port))).close()  # JAX would crash
        except OSError as error:
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS {address}",
                found=f"a port that cannot be used ({error})",
                expected="a free port of this machine",
                remedy="Choose another, the same for all processes.",
            ) from error
    return address, tuple(map(int, numbers))


def _give_up(address, numbers):
    """Ends this process, which has waited long enough for the others, and says what to check."""
    found, expected, remedy = "not all of them", "all", "See what the others say."
    if address is not None:
        expected = f"{numbers[0]}, numbered from 0 by JAX_PROCESS_ID"
        try:
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), 5).close()
        except OSError as error:
            found = f"nobody at {address} ({error})"
            remedy = "Check JAX_COORDINATOR_ADDRESS, and that process 0 runs there."
    error = InputError(
        "the processes of this run",
        found=f"{found} within {JOIN_SECONDS} s",
        expected=expected,
        remedy=remedy,
    )
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _several_tasks():
    """Whether SLURM or a TPU pod started more than one process."""
    slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)
    in_step = "SLURM_LOCALID" in os.environ and "SLURM_STEP_NODELIST" in os.environ
    return (in_step and slurm > 1) or _tpu_hosts() > 1


def _tpu_hosts():
    """How many hosts the TPU slices of this one have; 1 without a TPU.

    Kubernetes names them in the environment. Of a Cloud TPU VM only its metadata server knows:
    JAX asks it, and nobody where there is no TPU.
    """
    names = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    if names is not None:
        return names.count(",") + 1
    if not importlib.util.find_spec("libtpu"):
        return 1
    try:
        # No part of JAX's interface, but what `jax.distributed.initialize` itself goes by.
        from jax._src.clusters import GceTpuCluster

        return GceTpuCluster.get_process_count() if GceTpuCluster.is_env_present() else 1
    except (ImportError, AttributeError, OSError, ValueError) as error:
        print(
            f"warning: no word on other hosts of this TPU ({error}); if there are any, set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
            file=sys.stderr,
        )
        return 1


def leave(status):
    """Ends this process with an error; the others, who may be gone, are not waited for."""
    if not jax.distributed.is_initialized():
        sys.exit(status)
    if writes():
        time.sleep(GRACE_SECONDS)  # its end aborts the others, who may be telling the same error
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def writes():
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def agree(value):
    """Process 0's value (anything JSON holds) on every process; what others pass is ignored."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    own = np.zeros(length, np.uint8)
    if writes():
        own[:] = np.frombuffer(text, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(own)).tobytes())


def agree_on_arrays(tree):
    """Process 0's tree of arrays, in NumPy, on every process; the others pass one of its shapes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def require_same(where, value):
    """Raises `InputError` on every process unless all of them pass the same value.

    value: anything JSON holds. Processes that compute different things wait for each other for
    ever, or quietly train on different data.
    """
    if jax.process_count() == 1:
        return
    own = np.uint32(zlib.crc32(json.dumps(value, sort_keys=True).encode()))
    with loss_told():
        found = multihost_utils.process_allgather(own)
    others = [number for number, one in enumerate(found) if one != found[0]]
    if others:
        raise InputError(
            where,
            found=f"something else in process {', '.join(map(str, others))} than in process 0",
            expected=f"the same in all {len(found)} processes",
            remedy="Start all of them with the same command, code and data.",
        )


@contextlib.contextmanager
def loss_told():
    """Turns what JAX makes of the loss of another process into an `InputError`.

    That is a `JaxRuntimeError`, or a plain `ValueError` that begins with a status in capitals.
    """
    try:
        yield
    except InputError:
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        if jax.process_count() == 1 or not re.match("[A-Z_]+: ", reason):
            raise
        raise InputError(
            "another process of this run",
            found=f"that it is gone ({reason})",
            expected=f"{jax.process_count()} processes",
            remedy="Start all of them again: they go on from the last checkpoint.",
        ) from error


@contextlib.contextmanager
def stop_signal():
    """Yields `asked(step)`: whether to stop after this step because a process got SIGTERM.

    All processes get the same answer at the same step. Outside the main thread, and once the
    context is left, SIGTERM acts as it did before, or of several processes simply ends each.
    """
    if jax.process_count() > 1:  # JAX itself listens, and agrees on a step
        yield multihost_utils.reached_preemption_sync_point
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield lambda step: event.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Who runs where.

    slots members run at once, each on `group` devices, in `rounds` rounds; member m runs in round
    m // slots. Slots beyond the last member repeat it and are thrown away. Several processes have
    equally many of the used devices, which come first in `devices`, process by process.
    """

    num_members: int
    slots: int
    group: int
    rounds: int
    devices: tuple

    @property
    def used(self):
        return self.slots * self.group

    @cached_property
    def local(self):
        """Rows of the device axis that this process holds."""
        here = jax.process_index()
        used = self.devices[: self.used]
        return [row for row, device in enumerate(used) if device.process_index == here]

    @cached_property
    def member_groups(self):
        """Device numbers that share a member: gradients are averaged over them."""
        return [list(range(s * self.group, (s + 1) * self.group)) for s in range(self.slots)]

    @cached_property
    def shard_groups(self):
        """Device numbers that hold the same part of a batch: members are summed over them."""
        return [list(range(g, self.used, self.group)) for g in range(self.group)]

    def members(self, round_):
        """The member of each slot in a round."""
        first = round_ * self.slots
        return [min(first + s, self.num_members - 1) for s in range(self.slots)]

    def describe(self):
        idle = len(self.devices) - self.used
        text = f"{self.num_members} member(s) on {self.used} {self.devices[0].platform} device(s)"
        if self.group > 1:
            text += f", {self.group} devices per member"
        if self.rounds > 1:
            text += f", {self.rounds} rounds of {self.slots}"
        elif self.slots > self.num_members:
            spare = (self.slots - self.num_members) * self.group
            text += f", {spare} repeating another's work"
        return text + (f"; {idle} device(s) idle" if idle else "")


def plan(num_members, batch_size, devices=None):
    """Places members on devices; batch_size is the batch of one member.

    devices: equally many of each process; by default those of this one. A group never splits a
    batch unevenly, so the mean over devices is the mean over examples, and every process gets as
    many devices as the others; devices that this leaves over stay idle (`Layout.describe` says so).
    More members than devices: each device takes whole batches in turn, but the cores of one CPU
    share the batch of a member where otherwise one of them would repeat what another does.
    """
    devices = tuple(devices or jax.local_devices())
    by_process = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    processes = len(by_process)
    rounds = -(-num_members // len(devices))
    # A slot for each device always fits.
    fitting = [
        (slots, group)
        for slots in range(1, len(devices) + 1)
        for group in range(len(devices) // slots, 0, -1)
        if batch_size % group == 0 and slots * group % processes == 0
    ]
    if rounds > 1 and processes == 1 and devices[0].platform == "cpu":
        # A core is as busy with a part of a batch as with all of it: what counts is that the last
        # round leaves none without work.
        slots, group = min(fitting, key=lambda fit: (-(-num_members // fit[0]) / fit[1], -fit[0]))
    else:
        # No more rounds than needed; then fewer slots with more devices each are better.
        wanted = -(-num_members // rounds)
        slots, group = next(fit for fit in fitting if fit[0] >= wanted)
    share = slots * group // processes
    parts = list(by_process.values())
    chosen = [device for part in parts for device in part[:share]]
    idle = [device for part in parts for device in part[share:]]
    return Layout(num_members, slots, group, -(-num_members // slots), (*chosen, *idle))


def all_devices():
    """The devices of all processes."""
    return jax.devices()


def mean_over_member(tree, layout):
    """Inside a lifted function: averages over the devices of a member."""
    return jax.lax.pmean(tree, AXIS, axis_index_groups=layout.member_groups)


def sum_over_members(tree, layout):
    """Inside a lifted function: adds up the members of this round that see the same data."""
    return jax.lax.psum(tree, AXIS, axis_index_groups=layout.shard_groups)


def shard_index(layout):
    """Inside a lifted function: which part of its member's batch this device holds."""
    return jax.lax.axis_index(AXIS) % layout.group


def lift(function, layout, *, donate_first=False):
    """`function` on every device of a round; all arguments have the leading device axis."""
    return jax.pmap(
        function,
        axis_name=AXIS,
        devices=layout.devices[: layout.used],
        donate_argnums=(0,) if donate_first else (),
    )


def spread(members, layout):
    """Stacked members (M, ...) -> one pytree (devices, ...) per round."""
    rounds = []
    for round_ in range(layout.rounds):
        index = np.repeat(layout.members(round_), layout.group)
        rounds.append(jax.tree.map(lambda a, i=index: np.asarray(a)[i], members))
    return rounds


def place(rounds, layout):
    """Puts the trees of `spread` on their devices, as a lifted function leaves its results.

    A first call with host arrays would be compiled for those, and the second one again.
    """
    move = lift(lambda tree: tree, layout)
    return [move(jax.tree.map(lambda a: a[layout.local], tree)) for tree in rounds]


def replicate(tree, layout):
    """One copy of a tree of host arrays on each device of this process: (devices, ...)."""
    copy = jax.pmap(lambda tree, _: tree, in_axes=(None, 0), devices=layout.devices[: layout.used])
    return copy(tree, np.zeros(len(layout.local)))


def free_bytes(layout):
    """Free memory of the fullest device of this process; 0 for CPUs, whose memory is the host's."""
    free = []
    for row in layout.local:
        stats = layout.devices[row].memory_stats() or {}
        free.append(stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0))
    return min(free)


def gather(rounds, layout):
    """The inverse of `spread`: one pytree (devices, ...) per round -> members (M, ...) in NumPy.

    Every process has to call it, and gets all members.
    """

    def stack(*parts):
        parts = [np.asarray(everywhere(part))[:: layout.group] for part in parts]
        return np.concatenate(parts)[: layout.num_members]

    return jax.tree.map(stack, *rounds)


def everywhere(rows):
    """The rows (local devices, ...) of all processes, (devices, ...)."""
    if jax.process_count() == 1:
        return rows
    return multihost_utils.process_allgather(rows, tiled=True)


def split_batch(batch, layout):
    """A member's batch (B, ...) -> (group, B / group, ...)."""
    return jax.tree.map(lambda a: a.reshape(layout.group, -1, *a.shape[1:]), batch)


def local_slots(layout):
    """The slots that have a device in this process: only their batches are needed here."""
    return sorted({row // layout.group for row in layout.local})


def local_rows(layout, slot, batch_size):
    """(batch_size,) bool: the examples of a slot's batch that devices of this process hold."""
    rows = np.zeros((layout.group, batch_size // layout.group), bool)
    rows[[row % layout.group for row in layout.local if row // layout.group == slot]] = True
    return rows.ravel()


def stack_batches(batches, layout):
    """One batch (B, ...) per slot -> this process's rows (devices, B / group, ...).

    Slots that are not in `local_slots` may be None; of others only the `local_rows` count.
    """
    parts = {slot: split_batch(batches[slot], layout) for slot in local_slots(layout)}
    places = [divmod(row, layout.group) for row in layout.local]
    return jax.tree.map(
        lambda *slots: np.stack([slots[list(parts).index(slot)][part] for slot, part in places]),
        *parts.values(),
    )


def live_slots(layout, round_):
    """(devices,) float32: 1 where the slot holds a member of this round, 0 where it repeats one."""
    first = round_ * layout.slots
    live = np.arange(first, first + layout.slots) < layout.num_members
    return np.repeat(live, layout.group).astype(np.float32)


def cache_programs():
    """Keeps compiled programs in the user's cache folder, so that the next run starts at once.

    JAX_COMPILATION_CACHE_DIR names another folder; where it cannot be written, there is no cache.
    """
    if jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        try:
            folder = files.folder(Path(home) / "caal_jax" / "programs")
        except OSError:
            return
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
