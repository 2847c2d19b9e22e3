#!/bin/sh
# Lint, types and tests; never edits a file. Arguments go on to pytest: sh test.sh -m slow
set -eu
root=$(cd "$(dirname "$0")" && pwd)
requirements=requirements-dev.txt
modules="torch pytest hypothesis ruff mypy torchio medim SimpleITK prefetch_generator"
. "$root/utils/environment.sh"
cd "$root"
[ $# -gt 0 ] || set -- -m "not slow and not gpu"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest -q "$@"
