#!/bin/sh
# Serve the network to 3D Slicer, napari and MITK. Options go on to serve.py: sh serve.sh --help
set -eu
root=$(cd "$(dirname "$0")" && pwd)
requirements=requirements-serve.txt
modules="torch safetensors scipy SimpleITK nibabel starlette uvicorn blosc2"
. "$root/utils/environment.sh"
exec "$PYTHON" "$root/serve.py" "$@"
