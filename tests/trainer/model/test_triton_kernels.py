"""What runs on GPUs alone, as far as it can be shown without one: Triton compiles every kernel that the stages launch,
and its link to the GPU's driver."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.trainer.support import triton_kernels


# The tests of the image compile them for every generation, too.
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(each, marks=[] if each == max(triton_kernels.ARCHITECTURES) else [pytest.mark.sweep])
        for each in triton_kernels.ARCHITECTURES
    ],
)
def test_every_kernel_of_the_stages_compiles(architecture: int) -> None:
    """A kernel that a library adds fails here: compile it, too, or say in `UNUSED` why no stage launches it."""
    assert triton_kernels.found() == triton_kernels.compiled(architecture)


def test_places_without_kernels_are_not_named() -> None:
    site = Path(sysconfig.get_path("purelib"))
    assert [place for place in triton_kernels.UNUSED if not (site / place).exists()] == []


@pytest.mark.skipif(shutil.which("gcc") is None, reason="this machine has no C compiler")
def test_the_link_to_the_gpus_driver_compiles(tmp_path: Path) -> None:
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        pytest.skip("this machine has no headers of Python")
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.support.triton_driver", str(tmp_path)],
        env={**os.environ, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["launches"]
    assert len(told["loaded_from"]) == 1
