# Three images from one file: `--target operator` and `--target ui` (small, no torch), and `--target trainer`.
#
# `make images` builds all with buildah; `docker build --target trainer .` works too. Layers that rarely change come first:
# base, user, locked dependencies, our code.
ARG BASE_IMAGE=debian:bookworm-slim
ARG UV_VERSION=0.13.8
# `make images` mounts the machine's uv cache at another path. It already has these packages from `make setup`.
ARG UV_CACHE_DIR=/var/cache/uv

FROM ${BASE_IMAGE} AS base
RUN python3 -c "import ensurepip" 2>/dev/null && test -e /etc/ssl/certs/ca-certificates.crt || { \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
        && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/ldconfig/aux-cache; }
# Not with useradd, because it records the date of the build. Libraries need a name and a home directory for their user.
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
COPY requirements/metadata.py requirements/sbom.py /opt/requirements/
COPY crds/pyproject.toml /opt/crds/
COPY operator/pyproject.toml /opt/operator/
COPY crds/finetune_api /opt/finetune/finetune_api
COPY operator/finetune_operator /opt/finetune/finetune_operator
RUN python /opt/requirements/metadata.py /opt/finetune /opt/crds/pyproject.toml /opt/operator/pyproject.toml \
    && python /opt/requirements/sbom.py finetune-operator /opt/requirements/operator.txt \
        /usr/share/sbom/finetune-operator.cdx.json \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
ENTRYPOINT ["python", "-m", "finetune_operator"]

# What browsers load is copied from the checkout, where `make assets` puts it: npm and its packages are no part of any image,
# and a build needs no way to an npm registry.
FROM base AS ui
ARG UV_VERSION
ARG UV_CACHE_DIR
COPY requirements/install.sh requirements/ui.txt /opt/requirements/
RUN --mount=type=cache,target=/var/cache/uv sh /opt/requirements/install.sh /opt/requirements/ui.txt
COPY requirements/metadata.py requirements/sbom.py /opt/requirements/
COPY crds/pyproject.toml /opt/crds/
COPY cli/pyproject.toml /opt/cli/
COPY ui/pyproject.toml ui/package-lock.json /opt/ui/
COPY crds/finetune_api /opt/finetune/finetune_api
COPY cli/finetune_cli /opt/finetune/finetune_cli
COPY ui/finetune_ui /opt/finetune/finetune_ui
RUN python -c "from finetune_ui.serve import check_assets; check_assets()" \
    && python /opt/requirements/metadata.py /opt/finetune /opt/crds/pyproject.toml /opt/cli/pyproject.toml /opt/ui/pyproject.toml \
    && python /opt/requirements/sbom.py finetune-ui /opt/requirements/ui.txt /usr/share/sbom/finetune-ui.cdx.json \
        /opt/ui/package-lock.json \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
ENTRYPOINT ["python", "-m", "finetune_ui"]

FROM base AS trainer
# Triton compiles its link to the GPU's driver when it launches its first kernel, with the C compiler and Python's headers
# (docs/decisions/0026-kernels-in-the-image.md). The static library and the sanitizers' libraries are never linked.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libpython3-dev \
    && rm -rf /usr/lib/python3*/config-*/libpython*.a /usr/lib/gcc/*/*/lib*san*.a /usr/lib/gcc/*/*/lto1 \
        /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/* /var/cache/ldconfig/aux-cache
ARG UV_VERSION
ARG UV_CACHE_DIR
COPY requirements/install.sh requirements/trainer.txt /opt/requirements/
RUN --mount=type=cache,target=/var/cache/uv sh /opt/requirements/install.sh /opt/requirements/trainer.txt
# The root file system is read-only, so libraries write to /tmp. Threads that wait for each other sleep. By default they spin,
# which more than halves the speed of a CPU as soon as anything else runs on the node.
#
# The container runtime mounts the driver's compute libraries. Which GPUs a container gets is left to the device plugin: an
# image that asks for all of them gives pods that request none the GPUs of other pods. Some nodes (GKE) mount the driver in
# /usr/local/nvidia and leave it to the image to look there. TRITON_DEFAULT_FP_FUSION keeps Triton's default, without its
# warning that the default will change.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    OMP_WAIT_POLICY=PASSIVE \
    HF_HOME=/tmp/hf \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_PROGRESS_BARS=1 \
    DO_NOT_TRACK=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    MPLBACKEND=Agg \
    TOKENIZERS_PARALLELISM=false \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton \
    TRITON_DEFAULT_FP_FUSION=1
COPY requirements/metadata.py requirements/sbom.py /opt/requirements/
COPY crds/pyproject.toml /opt/crds/
COPY trainer_image/pyproject.toml /opt/trainer/
COPY crds/finetune_api /opt/finetune/finetune_api
COPY trainer_image/finetune_trainer /opt/finetune/finetune_trainer
RUN python /opt/requirements/metadata.py /opt/finetune /opt/crds/pyproject.toml /opt/trainer/pyproject.toml \
    && python /opt/requirements/sbom.py finetune-trainer /opt/requirements/trainer.txt \
        /usr/share/sbom/finetune-trainer.cdx.json \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "finetune_trainer"]
