"""Images: the busybox image, the base image of the Dockerfile, and the registry that serves images to the nodes.

Called by cluster.py (registry, busybox), and by people and tests through `push` and `base_image`. The name of a pushed
image is `registry.local:5000/<name>:<tag>` everywhere, in pods too. The registry's storage is in the cache and outlives
clusters.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.cluster import api, network, packages, process
from tests.cluster.state import ClusterError, State, cache_root, lock, replace

REGISTRY = "registry.local:5000"
BUSYBOX = f"{REGISTRY}/busybox:local"
BASE_IMAGE = "localhost/finetune-base:bookworm"
# The Debian packages of the images' Python. Everything else comes from the lock file.
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
PORT = 5000


def registry_address(state: State) -> str:
    return f"{network.address(state, 1)}:{PORT}"


def start_registry(state: State, holder: int) -> None:
    storage, config = cache_root() / "registry", state.config / "registry.yaml"
    storage.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": registry_address(state), "secret": state.id},
    }
    replace(config, json.dumps(content, indent=2))
    argv = [state.program("registry"), "serve", str(config)]
    # By default it sends traces to a collector, which does not exist here.
    process.ensure(state, "registry", argv, holder=holder, files=[config], env={"OTEL_TRACES_EXPORTER": "none"})


def wait_for_registry(state: State) -> None:
    address = network.address(state, 1)
    process.wait_until(state, "the registry answers", lambda: api.answers(address, PORT, "/v2/"), needs=["registry"])


def push(state: State, image: str, name: str = "") -> str:
    """Push an image from buildah to the nodes. Returns its reference by digest, so no older image can be meant."""
    if state.control_plane_only:
        raise ClusterError(f"cluster {state.name} is a control plane only. It has no nodes that could run an image")
    packages.ensure(packages.IMAGES)
    target = name or image.removeprefix(f"{REGISTRY}/").removeprefix("localhost/")
    if ":" not in target.rpartition("/")[2]:
        target += ":latest"
    with tempfile.NamedTemporaryFile(mode="r") as digest:
        # Buildah remembers the compressed form of each of its layers and asks the registry for it. It does not even
        # read a layer that the registry has. With zstd, a layer of torch takes half as long as with gzip, both ways.
        options = [
            "--tls-verify=false",
            "--format=oci",
            "--compression-format=zstd",
            "--compression-level=1",
            "--quiet",
            f"--digestfile={digest.name}",
        ]
        _buildah(["push", *options, image, f"docker://{registry_address(state)}/{state.id}/{target}"])
        return f"{REGISTRY}/{target.rpartition(':')[0]}@{digest.read().strip()}"


def base_image(image: str = BASE_IMAGE) -> bool:
    """Make the image for the Dockerfile's BASE_IMAGE from Debian packages. Returns False if it exists already."""
    packages.ensure(packages.IMAGES)
    with lock("base-image"):
        if subprocess.run(["buildah", "inspect", "--type=image", image], capture_output=True).returncode == 0:
            return False
        with tempfile.TemporaryDirectory() as scratch:
            _make_base(image, Path(scratch) / "base.tar")
    return True


def _make_base(image: str, archive: Path) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", str(archive)]
    # Without timestamps, the same packages make the same image, so cached layers on top of it stay valid.
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SOURCE_DATE_EPOCH": "0"})
    if result.returncode != 0:
        raise ClusterError(f"mmdebstrap failed:\n{result.stderr[-2000:]}")
    container = _buildah(["from", "scratch"])
    try:
        _buildah(["add", "--quiet", container, str(archive), "/"])
        _buildah(["config", "--cmd", "/bin/sh", container])
        _buildah(["commit", "--quiet", "--timestamp=0", container, image])
    finally:
        _buildah(["rm", container])


def _buildah(arguments: list[str]) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"`buildah {' '.join(arguments)}` failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout.strip()


def busybox_archive() -> Path:
    """An image with only Debian's static busybox. It is the pause container, and a shell for tests.

    It is written here, because buildah would take longer than the whole start of a node.
    """
    program = Path(packages.find("busybox") or "/bin/busybox").read_bytes()
    target = cache_root() / "images" / f"busybox-{hashlib.sha256(program).hexdigest()[:12]}.tar"
    if target.exists():
        return target
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for directory, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777)):
            _add(tar, directory, mode=mode, kind=tarfile.DIRTYPE)
        _add(tar, "bin/busybox", program, mode=0o755)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
        for applet in applets:
            if applet != "busybox":
                _add(tar, f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox")
    # As a pause container it sleeps, and it must reap orphans of a shared PID namespace.
    sleep = ["/bin/sh", "-c", "trap '' CHLD; exec sleep infinity"]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": sleep},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    encoded = json.dumps(config).encode()
    named = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = [{"Config": named, "RepoTags": [BUSYBOX], "Layers": ["layer.tar"]}]
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    with tarfile.open(unfinished, mode="w") as tar:
        _add(tar, named, encoded)
        _add(tar, "layer.tar", layer.getvalue())
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    unfinished.replace(target)
    return target


def _add(
    tar: tarfile.TarFile,
    name: str,
    data: bytes = b"",
    *,
    mode: int = 0o644,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.type, entry.linkname = len(data), mode, kind, link
    tar.addfile(entry, io.BytesIO(data))
