#!/usr/bin/env bash
# A Cloud TPU slice of any number of hosts: made, filled, trained on, made anew when preempted, and
# deleted. From the checkout, with gcloud logged in:
#   bash launch/tpu_pod.sh [more flags of caal_jax.main]
#
# 1. Edit: the slice.
TPU="${TPU:-}"
ZONE="${ZONE:-us-central2-b}"
TYPE="${TYPE:-v4-32}"
SOFTWARE="${SOFTWARE:-tpu-ubuntu2204-base}"
# 2. Edit: the config, and the bucket that holds its data. Every host mounts it at /mnt/bucket.
CONFIG="${CONFIG:-configs/mood.py}"
BUCKET="${BUCKET:-}"
DATA_DIR="${DATA_DIR:-/mnt/bucket/data}"
# 3. Edit: where the run goes, below /mnt/bucket, as it has to outlive the slice.
WORKDIR="${WORKDIR:-/mnt/bucket/runs/mood}"

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "$TPU" ] && [ -n "$BUCKET" ] || {
  echo "error: edit TPU and BUCKET on top of ${BASH_SOURCE[0]}, or set them in the environment." >&2
  exit 2
}
command -v gcloud >/dev/null || { echo "error: gcloud is not installed." >&2; exit 2; }

tpu() { gcloud compute tpus tpu-vm "$1" "$TPU" --zone="$ZONE" "${@:2}"; }
everywhere() { tpu ssh --worker=all --command="$1"; }

create() {
  tpu create --accelerator-type="$TYPE" --version="$SOFTWARE" --spot
  git archive --format=tar.gz --output=/tmp/caal_jax.tar.gz HEAD
  gcloud compute tpus tpu-vm scp /tmp/caal_jax.tar.gz "$TPU": --zone="$ZONE" --worker=all
  everywhere "set -e
    command -v gcsfuse >/dev/null || {
      echo 'error: no gcsfuse on this image; choose one that has it as SOFTWARE' >&2
      exit 2
    }
    sudo mkdir -p /mnt/bucket && sudo chown \$USER /mnt/bucket
    gcsfuse --implicit-dirs $BUCKET /mnt/bucket
    mkdir -p caal_jax && tar -xzf caal_jax.tar.gz -C caal_jax && cd caal_jax
    python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu]'"
}

state() { tpu describe --format='value(state)' 2>/dev/null || echo ABSENT; }

[ "$(state)" = READY ] || create
# The hosts of a slice know each other: no address is passed.
until everywhere "cd caal_jax && .venv/bin/python -m caal_jax.main --config=$CONFIG \
  --config.data_dir=$DATA_DIR --workdir=$WORKDIR $*"; do
  # Only a lost slice is worth a new try; an error of the run would come again.
  [ "$(state)" = READY ] && exit 1
  tpu delete --quiet || true
  create
done
tpu delete --quiet
