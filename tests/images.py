"""Build our images with buildah: `python3 -m tests.images [--push CLUSTER] [operator] [trainer] [ui]`.

Called by `make images`, the demo and the e2e tier. The tag of an image is the digest of everything that goes into it.
So an unchanged tree builds nothing, and a pod cannot run older code than the checkout. Needs only root, Debian and
Python.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests import cluster

CHECKOUT = Path(__file__).resolve().parents[1]
TARGETS = {
    "operator": ("operator/finetune_operator", "operator/pyproject.toml", "requirements/operator.txt"),
    "trainer": ("trainer_image/finetune_trainer", "trainer_image/pyproject.toml", "requirements/trainer.txt"),
    "ui": (
        "ui/finetune_ui",
        "ui/pyproject.toml",
        "ui/package-lock.json",
        "cli/finetune_cli",
        "cli/pyproject.toml",
        "requirements/ui.txt",
    ),
}
SHARED = (
    "Dockerfile",
    ".dockerignore",
    "requirements/install.sh",
    "requirements/metadata.py",
    "requirements/sbom.py",
    "crds/finetune_api",
    "crds/pyproject.toml",
)
# The package cache of uv. It is mounted into the build, so packages from `make setup` are not downloaded again.
UV_CACHE = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
CERTIFICATES = Path("/etc/ssl/certs")


class BuildError(Exception):
    """The build failed; the message says how."""


def tag(target: str) -> str:
    """The digest of the inputs of an image."""
    digest = hashlib.sha256()
    for name in (*SHARED, *TARGETS[target]):
        path = CHECKOUT / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            digest.update(f"{file.relative_to(CHECKOUT)}\0{file.stat().st_mode & 0o111:o}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def build(target: str) -> str:
    """Build an image unless it exists. Returns its name in buildah's storage."""
    cluster.base_image()
    image = f"localhost/finetune-{target}:{tag(target)}"
    if subprocess.run(["buildah", "inspect", "--type=image", image], capture_output=True).returncode != 0:
        print(
            f"  building the {target} image" + (" (takes minutes the first time)" if target == "trainer" else ""),
            flush=True,
        )
        run_build(target, image, "--layers")
    return image


def run_build(target: str, image: str, *options: str) -> None:
    """Run buildah once. The same inputs make the same image, byte for byte."""
    UV_CACHE.mkdir(parents=True, exist_ok=True)
    command = ["buildah", "bud", "--isolation=chroot", "--network=host", "--timestamp=0", *options]
    command += ["--target", target, "--tag", image]
    command += ["--build-arg", f"BASE_IMAGE={cluster.BASE_IMAGE}"]
    command += ["--build-arg", "UV_CACHE_DIR=/run/uv-cache", "--volume", f"{UV_CACHE}:/run/uv-cache"]
    if CERTIFICATES.is_dir():
        # Behind a TLS-intercepting proxy, the machine has the proxy's certificate authority. The base image does not.
        command += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    done = subprocess.run([*command, str(CHECKOUT)], capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"building the {target} image failed:\n{(done.stdout + done.stderr)[-4000:]}")


def build_and_push(target: str, name: str | None) -> str:
    """Build an image and push it to the local cluster with that name, if given. Returns its reference."""
    began = time.monotonic()
    image = build(target)
    print(f"  {target} image {image}  {time.monotonic() - began:.0f} s", flush=True)
    if name is None:
        return image
    began = time.monotonic()
    running = cluster.find(name)
    if running is None:
        raise BuildError(f"cluster {name} is not up, so the image cannot be pushed. Start it: make cluster")
    reference = running.push(image)
    print(f"  pushed as {reference}  {time.monotonic() - began:.0f} s", flush=True)
    return reference


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.images", description="Build our images.")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], metavar="TARGET", help="default: all")
    parser.add_argument("--push", metavar="CLUSTER", help="push them to the local cluster with that name")
    given = parser.parse_args(arguments)
    try:
        for target in given.targets or TARGETS:
            build_and_push(target, given.push)
    except (BuildError, cluster.ClusterError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
