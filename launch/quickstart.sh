#!/usr/bin/env bash
# Fresh machine to finished report on the built-in phantom. Extra flags go to the binary:
#   bash launch/quickstart.sh --config.data_dir=/data/mood --workdir=runs/mine
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""
exec .venv/bin/python -m caal_jax.main --config=configs/mood.py "$@"
