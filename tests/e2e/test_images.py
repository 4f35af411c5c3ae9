"""The built images: small enough, without what they must not have, and the same again when built again. And the trainer
image has all that a GPU needs but the driver, which the node brings.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import cluster, images

OPERATOR_MEGABYTES = 250
COMPILER_MEGABYTES = 250
SUPPORT = images.CHECKOUT / "tests" / "trainer" / "support"
USER = "10001:10001"


@pytest.fixture(scope="module", params=list(images.TARGETS))
def image(request: pytest.FixtureRequest) -> str:
    """Each of them."""
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


def _name(image: str) -> str:
    """The name of our package in it, such as finetune-ui."""
    return image.rpartition("/")[2].partition(":")[0]


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
    """Without it every start compiles again, on a read-only file system. By date it would never match."""
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
    assert (
        found == {"finetune-operator": "['kopf']", "finetune-trainer": "['torch']", "finetune-ui": "[]"}[_name(image)]
    )


def test_its_packages_know_their_version(image: str) -> None:
    ask = f"from importlib.metadata import version as v; print(v('{_name(image)}'), v('finetune-api'))"
    with _container(image) as (name, _):
        assert _buildah("run", "--isolation=chroot", name, "--", "python", "-c", ask) == "0.1.0 0.1.0"


def test_it_lists_what_it_contains(image: str) -> None:
    """Every Python package and every Debian package, by the names that advisories use."""
    name = _name(image)
    ask = "from importlib.metadata import distributions as d; print(*{x.metadata['Name'].lower() for x in d()})"
    with _container(image) as (container, root):
        bill = json.loads((root / "usr" / "share" / "sbom" / f"{name}.cdx.json").read_text())
        python = set(_buildah("run", "--isolation=chroot", container, "--", "python", "-c", ask).split())
        packages = ("dpkg-query", "-W", "-f", "${Package} ")
        debian = set(_buildah("run", "--isolation=chroot", container, "--", *packages).split())
    listed = {part["name"] for part in bill["components"]}
    assert {word.replace(".", "-").replace("_", "-") for word in python} <= listed
    assert debian <= listed
    assert {name, "finetune-api"} <= listed


def test_the_page_image_has_what_browsers_load_and_lists_it() -> None:
    with _container(images.build("ui")) as (_, root):
        vendor = root / "opt" / "finetune" / "finetune_ui" / "static" / "vendor"
        bill = json.loads((root / "usr" / "share" / "sbom" / "finetune-ui.cdx.json").read_text())
        assert {file.name for file in vendor.iterdir()} >= {
            "htmx.min.js",
            "sse.min.js",
            "uPlot.iife.min.js",
            "uPlot.min.css",
        }
        assert not list(root.glob("opt/**/node_modules"))
        assert not list(root.glob("opt/**/axe*.js")), "a tool of the tests"
    listed = {part["name"] for part in bill["components"]}
    assert {"htmx.org", "htmx-ext-sse", "uplot"} <= listed
    assert "axe-core" not in listed


def test_the_operator_image_is_small() -> None:
    with _container(images.build("operator")) as (_, whole), _container(cluster.BASE_IMAGE) as (_, base):
        added = _megabytes(whole) - _megabytes(base)
    assert added < OPERATOR_MEGABYTES


@pytest.fixture(scope="module")
def trainer() -> Iterator[str]:
    """A container of the trainer image, with the programs that compile for GPUs in /opt/check."""
    with _container(images.build("trainer")) as (name, root):
        (root / "opt" / "check").mkdir()
        for program in ("triton_driver.py", "triton_kernels.py"):
            shutil.copy(SUPPORT / program, root / "opt" / "check")
        yield name


def _run(container: str, *command: str) -> str:
    return _buildah("run", "--isolation=chroot", container, "--", *command)


def test_the_trainer_links_triton_to_a_driver(trainer: str) -> None:
    """It does so at the first launch, which no stage does without: as uid 10001, and only /tmp is written."""
    assert _run(trainer, "id", "-u") == "10001"
    told = json.loads(_run(trainer, "python", "/opt/check/triton_driver.py", "/tmp").splitlines()[-1])
    assert told["launches"]
    [module] = told["loaded_from"]
    assert module.startswith("/tmp/triton/")


def test_the_trainer_compiles_every_kernel_for_three_generations(trainer: str) -> None:
    told = json.loads(_run(trainer, "python", "/opt/check/triton_kernels.py").splitlines()[-1])
    assert len(told["found"]) >= 5
    assert told["missing"] == []


def test_the_trainer_lacks_nothing_for_cuda_but_the_driver(trainer: str) -> None:
    ldd = _run(trainer, "sh", "-c", "ldd /opt/venv/lib/python3*/site-packages/torch/lib/lib*_cuda.so").splitlines()
    assert any("libcudart.so" in line for line in ldd)
    assert {line.split()[0] for line in ldd if "not found" in line} <= {"libcuda.so.1"}
    # It takes CUDA's libraries from torch, which has loaded them.
    load = "import ctypes, glob, torch; files = glob.glob(torch.__path__[0] + '/../bitsandbytes/lib*_cuda13*.so')"
    assert "libbitsandbytes" in _run(trainer, "python", "-c", f"{load}; print(*map(ctypes.CDLL, files))")


def test_the_trainer_tells_the_container_runtime_what_it_needs_and_not_which_gpus() -> None:
    """An image that asks for all GPUs gets them in pods that request none, on some nodes."""
    environment = dict(entry.split("=", 1) for entry in _config(images.build("trainer"))["config"]["Env"])
    assert set(environment["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}
    assert "NVIDIA_VISIBLE_DEVICES" not in environment
    assert environment["TRITON_CACHE_DIR"].startswith("/tmp/")


def test_the_trainers_compiler_is_small() -> None:
    with _container(images.build("trainer")) as (_, whole), _container(cluster.BASE_IMAGE) as (_, base):
        added = _megabytes(whole / "usr") - _megabytes(base / "usr")
    assert added < COMPILER_MEGABYTES


@pytest.mark.sweep
def test_built_again_it_is_the_same_to_the_byte() -> None:
    names = ["localhost/finetune-test-again:1", "localhost/finetune-test-again:2"]
    try:
        for name in names:
            images.run_build("operator", name, "--no-cache")
        first, second = (_config(name)["rootfs"]["diff_ids"] for name in names)
    finally:
        subprocess.run(["buildah", "rmi", "--force", *names], capture_output=True)
    assert first == second
