#!/bin/sh
# Serve the network to a page in the browser, and to 3D Slicer, napari and MITK.
# A scan and options go on to serve.py: sh serve.sh --help
set -eu
root=$(cd "$(dirname "$0")" && pwd)
requirements=requirements-serve.txt
modules="torch safetensors scipy SimpleITK nibabel starlette uvicorn blosc2"
. "$root/utils/environment.sh"
exec "$PYTHON" "$root/serve.py" "$@"
