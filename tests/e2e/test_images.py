"""The built images: small enough, without what they must not have, and the same again when built again."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import cluster, images

OPERATOR_MEGABYTES = 250
USER = "10001:10001"


@pytest.fixture(scope="module", params=list(images.TARGETS))
def image(request: pytest.FixtureRequest) -> str:
    """Each of the two."""
    return images.build(request.param)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def _container(image: str) -> Iterator[tuple[str, Path]]:
    name = _buildah("from", image)
    try:
        yield name, Path(_buildah("mount", name))
    finally:
        _buildah("rm", name)


def _config(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_buildah("inspect", "--type=image", image))["OCIv1"]
    return found


def _megabytes(root: Path) -> float:
    files = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return sum(file.lstat().st_size for file in files) / 1e6


def test_it_runs_as_nobody_special(image: str) -> None:
    config = _config(image)["config"]
    assert config["User"] == USER
    assert config["Entrypoint"][:2] == ["python", "-m"]
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert environment["HOME"] == "/tmp"
    assert not {"SSL_CERT_FILE", "UV_CACHE_DIR"} & set(environment), "the build's own settings have leaked"


def test_its_bytecode_is_complete_and_goes_by_hash(image: str) -> None:
    """Without it every start compiles anew, on a read-only file system; by date it would never match."""
    with _container(image) as (_, root):
        for package in ("opt/venv/lib/python*/site-packages/pydantic", "opt/finetune/finetune_api"):
            [folder] = root.glob(package)
            sources = list(folder.glob("*.py"))
            assert sources
            for source in sources:
                [compiled] = (folder / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
                assert compiled.read_bytes()[4] == 1, f"{compiled} is not an unchecked hash"


def test_only_the_trainer_has_torch(image: str) -> None:
    with _container(image) as (name, _):
        has = "import importlib.util as u; print([m for m in ('torch', 'kopf', 'uv') if u.find_spec(m)])"
        found = _buildah("run", "--isolation=chroot", name, "--", "python", "-c", has)
    assert found == ("['kopf']" if "operator" in image else "['torch']")


def test_its_packages_know_their_version(image: str) -> None:
    package = "finetune-operator" if "operator" in image else "finetune-trainer"
    ask = f"from importlib.metadata import version as v; print(v('{package}'), v('finetune-api'))"
    with _container(image) as (name, _):
        assert _buildah("run", "--isolation=chroot", name, "--", "python", "-c", ask) == "0.1.0 0.1.0"


def test_the_operator_image_is_small() -> None:
    with _container(images.build("operator")) as (_, whole), _container(cluster.BASE_IMAGE) as (_, base):
        added = _megabytes(whole) - _megabytes(base)
    assert added < OPERATOR_MEGABYTES


def test_built_again_it_is_the_same_to_the_byte() -> None:
    names = ["localhost/finetune-test-again:1", "localhost/finetune-test-again:2"]
    try:
        for name in names:
            images.run_build("operator", name, "--no-cache")
        first, second = (_config(name)["rootfs"]["diff_ids"] for name in names)
    finally:
        subprocess.run(["buildah", "rmi", "--force", *names], capture_output=True)
    assert first == second
