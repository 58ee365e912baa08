#!/usr/bin/env bash
# Writes the lists of exact versions and hashes that the other scripts install from, for every
# Python and platform at once. Needs uv (https://docs.astral.sh/uv).
set -euo pipefail
cd "$(dirname "$0")/.."
lock=(uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate
  --no-header pyproject.toml -)
echo "setuptools>=77" | "${lock[@]}" --upgrade --extra test --output-file launch/locked_test.txt
echo "setuptools>=77" | "${lock[@]}" --constraint launch/locked_test.txt \
  --output-file launch/locked.txt
