#!/usr/bin/env bash
# Several processes on this machine train one ensemble; to try out what a cluster does:
#   bash launch/local.sh 2 --config=configs/mood.py --workdir=runs/two
# On CPU, CAAL_CPU_DEVICES (4) pretend devices per process. On GPUs give each process its own,
# with CUDA_VISIBLE_DEVICES inside a copy of the loop below.
processes="${1:-}"
[[ "$processes" =~ ^[1-9][0-9]*$ ]] || {
  echo "usage: bash launch/local.sh PROCESSES --config=... [--workdir=...]" >&2
  exit 2
}
shift
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""
python=.venv/bin/python
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port="$("$python" -c "$free_port")"
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$processes"
export JAX_NUM_CPU_DEVICES="${CAAL_CPU_DEVICES:-4}"

started=()
# Stopping the script stops all; each saves first.
trap 'kill -TERM "${started[@]}" 2>/dev/null' TERM INT
for ((number = 0; number < processes; number++)); do
  JAX_PROCESS_ID="$number" "$python" -m caal_jax.main "$@" &
  started+=($!)
done
status=0
for process in "${started[@]}"; do
  while true; do
    ended=0
    wait "$process" || ended=$?
    kill -0 "$process" 2>/dev/null || break # a trapped signal ends `wait` before the process
  done
  [ "$ended" -eq 0 ] || status="$ended"
done
exit "$status"
