"""The number of ranks, their GPUs, and whether they can share the global batch."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import ResolvedJob, resolve
from finetune_api.job import FineTuneJob
from finetune_api.micro_batch import MicroBatch
from finetune_trainer.errors import InvalidSpec, NoDevice
from finetune_trainer.launcher import devices


def job(gpus: int, *, allow_cpu: bool = False) -> ResolvedJob:
    document = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "tune"},
        "spec": {
            "stage": "sft",
            "model": {"source": "pvc://models/small"},
            "datasets": [{"source": "pvc://models/data.jsonl", "format": "openai"}],
            "training": {"maxSteps": 10},
            "workspace": {"claimName": "work"},
            "resources": {"gpusPerNode": gpus},
        },
    }
    return resolve(FineTuneJob.model_validate(document), allow_cpu=allow_cpu)


@pytest.mark.parametrize(
    ("requested", "visible", "allow_cpu", "ranks"),
    [(1, 1, False, 1), (4, 4, False, 4), (2, 8, False, 2), (0, 0, False, 1), (0, 8, False, 1), (4, 0, True, 4)],
)
def test_ranks_in_a_cluster(requested: int, visible: int, allow_cpu: bool, ranks: int) -> None:
    assert devices.ranks_on_node(job(requested, allow_cpu=allow_cpu), visible, in_cluster=True) == ranks


@pytest.mark.parametrize(("requested", "visible", "allow_cpu"), [(1, 0, False), (4, 1, False), (4, 1, True)])
def test_too_few_visible_gpus_are_refused(requested: int, visible: int, allow_cpu: bool) -> None:
    with pytest.raises(NoDevice, match=f"requests {requested} GPUs per node, but this pod can use {visible}"):
        devices.ranks_on_node(job(requested, allow_cpu=allow_cpu), visible, in_cluster=True)


@pytest.mark.parametrize(("requested", "visible", "ranks"), [(8, 0, 1), (8, 1, 1), (1, 4, 4), (0, 0, 1)])
def test_ranks_on_a_laptop(requested: int, visible: int, ranks: int) -> None:
    assert devices.ranks_on_node(job(requested), visible, in_cluster=False) == ranks


@pytest.mark.parametrize(
    ("requested", "visible", "named", "shown"),
    [
        (0, 8, None, ""),
        (0, 0, None, ""),
        (1, 1, None, None),
        (2, 0, None, None),
        (1, 8, None, "0"),
        (2, 8, "", "0,1"),
        (2, 3, "GPU-a,GPU-b,GPU-c", "GPU-a,GPU-b"),
        (2, 2, "6,7", None),
    ],
)
def test_a_job_sees_no_more_gpus_than_it_requests(
    monkeypatch: pytest.MonkeyPatch, requested: int, visible: int, named: str | None, shown: str | None
) -> None:
    """A single rank that sees two GPUs would train on both with nn.DataParallel."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    expected = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    assert devices.environment(job(requested), visible, in_cluster=True) == expected
    assert devices.environment(job(requested), visible, in_cluster=False) == {}


class Driver:
    """A library as `ctypes.CDLL` loads it, with so many devices."""

    def __init__(self, count: int, error: int = 0) -> None:
        self.count, self.error = count, error

    def __repr__(self) -> str:
        return f"Driver({self.count}, error={self.error})"  # names of tests must be the same in each process

    def cuInit(self, _flags: int) -> int:  # noqa: N802
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return self.error

    hipGetDeviceCount = cuDeviceGetCount  # noqa: N815


@pytest.mark.parametrize(
    ("installed", "visible"),
    [
        ({}, 0),
        ({"libcuda.so.1": Driver(2)}, 2),
        ({"libcuda.so.1": Driver(2, error=999)}, 0),
        ({"libamdhip64.so.7": Driver(8)}, 8),
        ({"/opt/rocm/lib/libamdhip64.so": Driver(4)}, 4),
        ({"libamdhip64.so": Driver(8, error=100)}, 0),
        ({"libcuda.so.1": Driver(0, error=100), "libamdhip64.so": Driver(1)}, 1),
    ],
    ids=["none", "cuda", "broken cuda", "rocm", "rocm in /opt", "broken rocm", "rocm beside cuda without GPUs"],
)
def test_gpus_of_cuda_and_of_rocm_are_counted(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, Driver], visible: int
) -> None:
    def load(name: str) -> Driver:
        if name not in installed:
            raise OSError(f"{name}: cannot open shared object file")
        return installed[name]

    monkeypatch.delenv("ROCM_PATH", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert devices.visible_gpus() == visible


def test_the_rocm_runtime_inside_torch_is_found_without_importing_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('imported')")
    runtime = tmp_path / "torch" / "lib" / "libamdhip64.so.7"
    runtime.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    loaded: list[str] = []

    def load(name: str) -> Driver:
        loaded.append(name)
        if name != str(runtime):
            raise OSError(name)
        return Driver(8)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert devices.visible_gpus() == 8
    assert loaded == ["libcuda.so.1", str(runtime)]


def test_ranks_must_share_the_global_batch_evenly() -> None:
    devices.check_batch(job(1), MicroBatch(4), 4)
    with pytest.raises(InvalidSpec, match=r"globalBatchSize is 16, which 3 processes .* Use a multiple of 12"):
        devices.check_batch(job(1), MicroBatch(4), 3)
    devices.check_batch(job(1), MicroBatch(100, "tokens"), 8)
    with pytest.raises(InvalidSpec, match=r"globalBatchSize is 16, which 3 processes cannot .* Use a multiple of 3"):
        devices.check_batch(job(1), MicroBatch(100, "tokens"), 3)
