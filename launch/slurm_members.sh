#!/usr/bin/env bash
# SLURM, one member of the ensemble per job of an array, into one workdir; then one job that joins
# them, calibrates and evaluates. From the checkout, with `pip install -e '.[cuda]'` done in .venv,
# for five members and with the three edits below made in both files:
#   id=$(sbatch --parsable --array=0-4 launch/slurm_members.sh --config.num_members=5)
#   sbatch --dependency=afterok:"$id" launch/slurm_node.sh --config.num_members=5
# Stopped by preemption, a lost node or the time limit, the job is queued again and resumes.
#
# 1. Edit: the resources.
#SBATCH --job-name=caal_jax
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
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
srun .venv/bin/python -m caal_jax.main --config="$CONFIG" --config.data_dir="$DATA_DIR" \
  --workdir="$WORKDIR" --mode=train --config.members="$SLURM_ARRAY_TASK_ID" "$@" || status=$?
[ "$status" -ne 143 ] || scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
exit "$status"
