#!/usr/bin/env bash
# All that a machine with one GPU is to tell, in at most 9 minutes; bench/gpu.py has the options.
#
#     bash bench/gpu.sh --out results --wheels wheels --data prepared_native --state ckpt/sam_med3d_small.safetensors
#     bash bench/gpu.sh --dry-run --out results
#
# --wheels FOLDER holds the packages that the machine lacks (docs/development.md): they are put into a
# temporary folder, and nothing of the machine is changed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
arguments=()
while [ $# -gt 0 ]; do
    if [ "$1" = --wheels ]; then
        site=$(mktemp -d)
        trap 'rm -rf "$site"' EXIT
        "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
        export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
        shift 2
    else
        arguments+=("$1")
        shift
    fi
done
"$python" "$root/bench/gpu.py" "${arguments[@]}"
