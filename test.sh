#!/bin/sh
# Lint, types and tests; never edits a file. Arguments go on to pytest: sh test.sh -m slow
set -eu
root=$(cd "$(dirname "$0")" && pwd)
requirements=requirements-dev.txt
modules="torch pytest xdist hypothesis ruff mypy torchio medim SimpleITK pydicom prefetch_generator skimage"
. "$root/utils/environment.sh"
cd "$root"
[ $# -gt 0 ] || set -- -m "not slow and not gpu"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
# Two processes, as most of the time goes into starting others; a thread each, as on two cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PYTHON" -m pytest -q -n 2 --dist loadfile "$@"
