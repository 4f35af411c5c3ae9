# Two images from one file: `--target operator` (small, no torch) and `--target trainer`.
#
# `make images` builds both with buildah; `docker build --target trainer .` works as well. Layers go from what changes
# seldom to what changes often: base, user, locked dependencies, our code.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS base
RUN python3 -c "import ensurepip" 2>/dev/null && test -e /etc/ssl/certs/ca-certificates.crt || { \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
        && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/ldconfig/aux-cache; }
# Written by hand, since useradd notes the day of the build. Python wants a name and a home for its user.
RUN echo "finetune:x:10001:10001:finetune:/tmp:/usr/sbin/nologin" >> /etc/passwd \
    && echo "finetune:x:10001:" >> /etc/group
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/finetune \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp

# uv is mounted into the stages below and is in neither image.
FROM base AS uv
ARG UV_VERSION=0.13.8
RUN python3 -m venv /opt/uv \
    && PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_NO_CACHE_DIR=1 /opt/uv/bin/pip install --quiet uv==${UV_VERSION}
# Bytecode is kept by the hash of its source: layers have no time of their own, so a date would never match.
# `make images` points UV_CACHE_DIR at the machine's own cache, which has these packages already.
ARG UV_CACHE_DIR=/var/cache/uv
RUN printf '%s\n' '#!/bin/sh -e' \
    'export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PYC_INVALIDATION_MODE=UNCHECKED_HASH' \
    "export UV_CACHE_DIR=${UV_CACHE_DIR} UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_HTTP_TIMEOUT=300" \
    '/opt/uv/bin/uv venv --quiet --python /usr/bin/python3 /opt/venv' \
    '/opt/uv/bin/uv pip sync --quiet --require-hashes --python /opt/venv "$1"' \
    > /opt/uv/bin/install-locked && chmod +x /opt/uv/bin/install-locked

FROM base AS operator
COPY requirements/operator.txt /opt/requirements.txt
RUN --mount=type=bind,from=uv,source=/opt/uv,target=/opt/uv --mount=type=cache,target=/var/cache/uv \
    /opt/uv/bin/install-locked /opt/requirements.txt
COPY crds/finetune_api /opt/finetune/finetune_api
COPY operator/finetune_operator /opt/finetune/finetune_operator
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
ENTRYPOINT ["python", "-m", "finetune_operator"]

FROM base AS trainer
# Whatever a library wants to write goes to /tmp: the root file system is read-only.
ENV HF_HOME=/tmp/hf \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_PROGRESS_BARS=1 \
    DO_NOT_TRACK=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    MPLBACKEND=Agg \
    TOKENIZERS_PARALLELISM=false \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton
COPY requirements/trainer.txt /opt/requirements.txt
RUN --mount=type=bind,from=uv,source=/opt/uv,target=/opt/uv --mount=type=cache,target=/var/cache/uv \
    /opt/uv/bin/install-locked /opt/requirements.txt
COPY crds/finetune_api /opt/finetune/finetune_api
COPY trainer_image/finetune_trainer /opt/finetune/finetune_trainer
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "finetune_trainer"]
