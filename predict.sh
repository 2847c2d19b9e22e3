#!/bin/sh
# Segment every case of inputs/ into outputs/. Options go on to infer.py: sh predict.sh --help
set -eu
root=$(cd "$(dirname "$0")" && pwd)
requirements=requirements.txt
modules="torch safetensors scipy prefetch_generator tqdm SimpleITK nibabel pydicom cv2"
. "$root/utils/environment.sh"
exec "$PYTHON" "$root/infer.py" --inputs "$root/inputs" --outputs "$root/outputs" "$@"
