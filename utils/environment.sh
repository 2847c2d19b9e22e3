# Sourced by the shell entry points: sets PYTHON to an interpreter that has what the file
# $requirements lists. An active environment, a container or a system that has torch is used as it
# is; else .venv is, and is made first where it is missing or was made for other requirements.
# Before: $root, the repository; $requirements, a file in it; $modules, what must be importable.

has_modules() {
    "$1" -c 'import sys, importlib.util as u; sys.exit(any(u.find_spec(m) is None for m in sys.argv[1:]))' \
        $modules 2>/dev/null
}

PYTHON=${PYTHON:-python3}
if ! command -v "$PYTHON" >/dev/null; then
    echo "expected Python 3.11 or newer as $PYTHON, found none" >&2
    exit 2
fi
if ! has_modules "$PYTHON"; then
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        echo "the active environment lacks one of: $modules" >&2
        echo "install with: $PYTHON -m pip install -r $root/$requirements" >&2
        exit 2
    fi
    # The stamp is written last: an interrupted installation is taken up again. The development
    # requirements hold the others.
    stamp=$root/.venv/installed-$(cat "$root"/requirements*.txt | cksum | tr ' ' -)
    if [ ! -e "$stamp-$requirements" ] && [ ! -e "$stamp-requirements-dev.txt" ]; then
        echo "first run: installing $requirements into $root/.venv (once, takes minutes)" >&2
        "$PYTHON" -m venv "$root/.venv"
        "$root/.venv/bin/python" -m pip install --disable-pip-version-check \
            -r "$root/$requirements" >&2
        : >"$stamp-$requirements"
    fi
    PYTHON=$root/.venv/bin/python
fi
