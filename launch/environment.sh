# Sourced by the other scripts: a .venv with the package, made or renewed only when needed.
# shellcheck shell=bash
# CAAL_PYTHON chooses the interpreter (3.11 or newer); $1 is an extra, "test" or "". What is
# installed are the versions of locked*.txt (see lock.sh), each checked against its hash.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${CAAL_PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; found $("$python" --version). Set CAAL_PYTHON=..." >&2
  exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
locked="launch/locked${1:+_$1}.txt"
stamp=".venv/installed${1:+_$1}"
if ! cat pyproject.toml "$locked" | cmp -s - "$stamp"; then
  echo "installing caal_jax${1:+ and its ${1}s} into .venv ..."
  install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
  "${install[@]}" --require-hashes --requirement "$locked"
  "${install[@]}" --no-deps --no-build-isolation --editable .
  cat pyproject.toml "$locked" > "$stamp"
fi
