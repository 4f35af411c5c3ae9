#!/bin/sh
# Makes /opt/venv from one lock file, inside an image build: `sh install.sh operator.txt`. uv itself doesn't stay.
set -eu
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt
python3 -m venv /tmp/uv
/tmp/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "uv==$UV_VERSION"

# Bytecode goes by the hash of its source: files in an image have no date of their own, so a date would never match.
export UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_LINK_MODE=copy UV_HTTP_TIMEOUT=300
/tmp/uv/bin/uv venv --quiet --python /usr/bin/python3 /opt/venv
/tmp/uv/bin/uv pip sync --quiet --require-hashes --python /opt/venv "$1"
rm -rf /tmp/uv
