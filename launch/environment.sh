# Sourced by the other scripts: a .venv with the package, made or renewed only when needed.
# shellcheck shell=bash
# CAAL_PYTHON chooses the interpreter (3.11 or newer); $1 is the list of extras, as in [test].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${CAAL_PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; found $("$python" --version). Set CAAL_PYTHON=..." >&2
  exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
stamp=".venv/installed$1"
if ! cmp -s pyproject.toml "$stamp"; then
  echo "installing caal_jax$1 into .venv ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$1"
  cp pyproject.toml "$stamp"
fi
