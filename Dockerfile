# docker build -t sammed3d_baseline:latest .
# docker build --target serve -t sammed3d_serve:latest .
# What lies in ckpt/ is baked in, so that the container needs no network.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS segment

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /workspace
COPY requirements.txt .
RUN python3 -m venv $VIRTUAL_ENV && pip install --no-cache-dir -r requirements.txt

COPY ckpt ckpt
COPY segment_anything segment_anything
COPY utils utils
COPY infer.py predict.sh ./
RUN python3 -m compileall -q infer.py segment_anything utils && mkdir -p inputs outputs
CMD ["sh", "predict.sh"]

FROM segment AS serve
COPY requirements-serve.txt .
RUN pip install --no-cache-dir -r requirements-serve.txt
COPY serve.py serve.sh ./
EXPOSE 1527
CMD ["sh", "serve.sh", "--host", "0.0.0.0"]

# The one that is built by default, for the challenge.
FROM segment
