# Two images from one file: `--target operator` (small, no torch) and `--target trainer`.
#
# `make images` builds both with buildah; `docker build --target trainer .` works as well. Layers go from what changes
# seldom to what changes often: base, user, locked dependencies, our code.
ARG BASE_IMAGE=debian:bookworm-slim
ARG UV_VERSION=0.13.8
# `make images` mounts the machine's own cache of uv elsewhere: it has these packages from `make setup` already.
ARG UV_CACHE_DIR=/var/cache/uv

FROM ${BASE_IMAGE} AS base
RUN python3 -c "import ensurepip" 2>/dev/null && test -e /etc/ssl/certs/ca-certificates.crt || { \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
        && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/ldconfig/aux-cache; }
# Written by hand, since useradd notes the day of the build. Libraries want a name and a home for their user.
RUN echo "finetune:x:10001:10001:finetune:/tmp:/usr/sbin/nologin" >> /etc/passwd \
    && echo "finetune:x:10001:" >> /etc/group
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/finetune \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp

FROM base AS operator
ARG UV_VERSION
ARG UV_CACHE_DIR
COPY requirements/install.sh requirements/operator.txt /opt/requirements/
RUN --mount=type=cache,target=/var/cache/uv sh /opt/requirements/install.sh /opt/requirements/operator.txt
COPY requirements/metadata.py /opt/requirements/
COPY crds/pyproject.toml /opt/crds/
COPY operator/pyproject.toml /opt/operator/
COPY crds/finetune_api /opt/finetune/finetune_api
COPY operator/finetune_operator /opt/finetune/finetune_operator
RUN python /opt/requirements/metadata.py /opt/finetune /opt/crds/pyproject.toml /opt/operator/pyproject.toml \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
ENTRYPOINT ["python", "-m", "finetune_operator"]

FROM base AS trainer
ARG UV_VERSION
ARG UV_CACHE_DIR
COPY requirements/install.sh requirements/trainer.txt /opt/requirements/
RUN --mount=type=cache,target=/var/cache/uv sh /opt/requirements/install.sh /opt/requirements/trainer.txt
# Whatever a library wants to write goes to /tmp: the root file system is read-only. Threads that wait for each other
# sleep: by default they spin, which more than halves a CPU's speed as soon as anything else runs on the node.
ENV OMP_WAIT_POLICY=PASSIVE \
    HF_HOME=/tmp/hf \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_PROGRESS_BARS=1 \
    DO_NOT_TRACK=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    MPLBACKEND=Agg \
    TOKENIZERS_PARALLELISM=false \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton
COPY requirements/metadata.py /opt/requirements/
COPY crds/pyproject.toml /opt/crds/
COPY trainer_image/pyproject.toml /opt/trainer/
COPY crds/finetune_api /opt/finetune/finetune_api
COPY trainer_image/finetune_trainer /opt/finetune/finetune_trainer
RUN python /opt/requirements/metadata.py /opt/finetune /opt/crds/pyproject.toml /opt/trainer/pyproject.toml \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "finetune_trainer"]
