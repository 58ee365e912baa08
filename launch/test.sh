#!/usr/bin/env bash
# Sets everything up and runs the whole test suite; extra arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
# The tests of a file stay in one process, since they share what they have set up.
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile "$@"
