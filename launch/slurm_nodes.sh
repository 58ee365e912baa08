#!/usr/bin/env bash
# SLURM, several nodes as one run: a process per GPU, which find each other through SLURM. From a
# checkout that every node sees, with `pip install -e '.[cuda]'` done in its .venv:
#   sbatch launch/slurm_nodes.sh [more flags of caal_jax.main]
# Stopped by preemption, a lost node or the time limit, the job is queued again and resumes.
#
# 1. Edit: the resources.
#SBATCH --job-name=caal_jax
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
# 2. Edit: the config and its data, a folder that every node sees.
CONFIG="${CONFIG:-configs/mood.py}"
DATA_DIR="${DATA_DIR:-}"
# 3. Edit: where the run goes, on a disk that every node sees.
WORKDIR="${WORKDIR:-}"

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
for folder in "$DATA_DIR" "${WORKDIR%/*}"; do
  [ -d "$folder" ] || {
    echo "error: '$folder' is no folder on $(hostname). Edit CONFIG, DATA_DIR and WORKDIR on top" \
      "of the launcher, or set them in the environment." >&2
    exit 2
  }
done

# 143: saved and ended on SIGTERM, which SLURM sends 180 s before the time is up.
status=0
srun --kill-on-bad-exit=1 .venv/bin/python -m caal_jax.main --config="$CONFIG" \
  --config.data_dir="$DATA_DIR" --workdir="$WORKDIR" "$@" || status=$?
[ "$status" -ne 143 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
