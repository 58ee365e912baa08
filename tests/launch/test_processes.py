"""Several processes that are not what a run needs: each ends soon, with a word about why."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from caal_jax import parallel
from caal_jax.errors import InputError


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def place(address, count, number):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    return dict(zip(names, (address, count, number), strict=True))


@pytest.mark.parametrize(
    ("address", "count", "number"),
    [
        ("127.0.0.1", "2", "0"),
        ("127.0.0.1:http", "2", "0"),
        ("127.0.0.1:84760", "2", "0"),
        (":8476", "2", "0"),
        ("127.0.0.1:8476", "2", "2"),
        ("127.0.0.1:8476", "0", "0"),
        ("127.0.0.1:8476", "two", "0"),
        ("127.0.0.1:8476", "2", ""),
        ("", "2", "1"),
    ],
)
def test_a_place_that_cannot_be_meant_is_refused(address, count, number, monkeypatch):
    for name, value in place(address, count, number).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"JAX_PROCESS_ID: .*expected host:port of process 0"):
        parallel.start()


def test_a_port_that_process_0_cannot_have_is_refused(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for name, value in place(address, "2", "0").items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"{address}: found a port that cannot be used"):
            parallel.start()


@pytest.fixture
def tpu_vm(tmp_path, monkeypatch):
    """A stand-in for a Cloud TPU VM: `tpu_vm(hosts)` starts as one of them; whether it joined."""
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)  # the last is set where JAX found no TPU
    (tmp_path / "libtpu.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)

    def start(hosts):
        def get_metadata(key):
            if not hosts:
                raise ConnectionError("metadata.google.internal: no such host")
            values = {"worker-network-endpoints": ",".join(hosts), "agent-worker-number": "1"}
            return values.get(key, ""), 200

        joined = []
        monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", get_metadata)
        monkeypatch.setattr(jax.distributed, "initialize", lambda **_: joined.append(True))
        parallel.start()
        return bool(joined)

    return start


def test_a_tpu_vm_asks_whether_there_are_others(tpu_vm, monkeypatch, capsys):
    assert tpu_vm(["10.0.0.2", "10.0.0.3"])
    assert tpu_vm(["old:1:10.0.0.2", "old:2:10.0.0.3"])
    assert not tpu_vm(["10.0.0.2"])
    assert capsys.readouterr().err == ""
    assert not tpu_vm([])
    told = capsys.readouterr().err
    assert "no word on other hosts" in told
    assert "no such host" in told
    # What Kubernetes says counts for more, and without a TPU nobody is asked.
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert tpu_vm([])
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert not tpu_vm(["10.0.0.2", "10.0.0.3"])
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", False)
    assert not tpu_vm([])
    assert capsys.readouterr().err == ""


CHILD = """
import sys
from caal_jax import parallel
from caal_jax.errors import InputError
try:
    parallel.start()
    parallel.require_same("training data", [sys.argv[1], "seen by all"])
except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    parallel.leave(1)
"""


def start(address, number, *, data="a", devices=1, seconds=200):
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, data],
        env=kept
        | place(address, "2", str(number))
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "CAAL_JOIN_SECONDS": str(seconds),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(processes):
    """[(status, standard error)]"""
    told = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, one) for process, one in zip(processes, told, strict=True)]


def test_processes_that_wait_in_vain_say_for_whom():
    wrong, alone = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    given = [(wrong, 1), (alone, 0)]
    found = ends([start(address, number, seconds=4) for address, number in given])
    assert [status for status, _ in found] == [1, 1]
    for (address, number), (_, told) in zip(given, found, strict=True):
        assert f"process {number} of 2 meets the others at {address}" in told
        reason = "not all of them" if number == 0 else f"nobody at {address}"
        assert f"error: the processes of this run: found {reason}" in told
        assert "within 4 s; expected 2" in told


def test_uneven_processes_all_say_what_differs():
    address = f"127.0.0.1:{free_port()}"
    counts = ends([start(address, number, devices=2 - number) for number in (0, 1)])
    address = f"127.0.0.1:{free_port()}"
    data = ends([start(address, number, data="ab"[number]) for number in (0, 1)])
    for status, told in counts:
        assert status == 1
        assert "found 2 of process 0, 1 of process 1; expected as many of each" in told
    for status, told in data:
        assert status == 1
        assert "training data: found something else in process 1 than in process 0" in told


@pytest.mark.parametrize(
    ("processes", "error", "told"),
    [
        (2, ValueError("UNKNOWN: Gloo AllGather failed: reset by peer"), True),
        (2, jax.errors.JaxRuntimeError("INTERNAL: connection closed"), True),
        (1, jax.errors.JaxRuntimeError("INTERNAL: connection closed"), False),
        (2, ValueError("shapes differ"), False),
        (2, InputError("DATA", found="1", expected="2", remedy="Look."), False),
    ],
)
def test_the_loss_of_a_process_is_told_from_other_errors(processes, error, told, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with pytest.raises(type(error) if not told else InputError) as found, parallel.loss_told():
        raise error
    assert ("another process of this run: found that it is gone" in str(found.value)) == told


@pytest.mark.parametrize(
    ("members", "batch_size", "processes", "each", "layout", "told"),
    [
        # (slots, devices of each, rounds)
        (3, 8, 2, 3, (3, 2, 1), "on 6 cpu device(s), 2 devices per member"),
        (1, 16, 3, 1, (3, 1, 1), "on 3 cpu device(s), 2 repeating another's work"),
        (
            5,
            16,
            2,
            4,
            (6, 1, 1),
            "on 6 cpu device(s), 1 repeating another's work; 2 device(s) idle",
        ),
        (5, 16, 2, 1, (2, 1, 3), "on 2 cpu device(s), 3 rounds of 2"),
    ],
)
def test_members_that_do_not_divide_among_processes(
    members, batch_size, processes, each, layout, told
):
    devices = [
        SimpleNamespace(process_index=process, platform="cpu")
        for process in range(processes)
        for _ in range(each)
    ]
    found = parallel.plan(members, batch_size, devices)
    assert (found.slots, found.group, found.rounds) == layout
    assert found.describe() == f"{members} member(s) {told}"
    used = [device.process_index for device in found.devices[: found.used]]
    assert len({used.count(process) for process in range(processes)}) == 1
