"""Builds and runs versitygw. Called by tests' fixtures; `python -m tests.s3.server` only builds it.

The program is kept in the same cache as the cluster's, in a folder named after all that goes into it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import time
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from tests.cluster import go
from tests.cluster.state import cache_root

MODULE = Path(__file__).with_name("module")
PACKAGE = "github.com/versity/versitygw/cmd/versitygw"
ACCESS, SECRET = "tester", "a-secret-of-tests"


def program() -> Path:
    """Built if it isn't there: once, in about two minutes on two cores."""
    parts = [(MODULE / name).read_bytes() for name in ("go.mod", "go.sum")]
    flags = go.flags()
    parts.append(" ".join([*flags, platform.machine()]).encode())
    target = cache_root() / "bin" / ("s3-" + hashlib.sha256(b"".join(parts)).hexdigest()[:12]) / "versitygw"
    if not target.exists():
        with go.building("build-s3") as env:
            if not target.exists():
                go.build(MODULE, PACKAGE, target, flags, env)
    return target


class S3:
    """A running server with its folder; `address` is what AWS_ENDPOINT_URL has to be."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        for name in ("buckets", "facts"):
            (folder / name).mkdir(parents=True)
        env = {**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET}
        # Facts in files of their own: temporary folders need not have extended attributes.
        where = ["--sidecar", str(folder / "facts"), str(folder / "buckets")]
        command = [str(program()), "--port", f"127.0.0.1:{port}", "--quiet", "posix", *where]
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(command, env=env, stdout=self._log, stderr=subprocess.STDOUT)
        self.client = boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )
        self._ready(folder)

    def _ready(self, folder: Path) -> None:
        until = time.monotonic() + 60
        while True:
            try:
                self.client.list_buckets()
                return
            except BotoCoreError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    said = (folder / "log").read_text()[-2000:]
                    raise RuntimeError(f"versitygw doesn't answer: {error}\n{said}") from error
                time.sleep(0.1)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


if __name__ == "__main__":
    program()
