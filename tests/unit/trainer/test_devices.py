"""How many ranks start, and whether the global batch can be shared among them."""

import pytest
from finetune_api.contract import ResolvedJob, resolve
from finetune_api.job import FineTuneJob
from finetune_trainer import devices
from finetune_trainer.errors import InvalidSpec, NoDevice


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
    ("asked", "visible", "allow_cpu", "ranks"),
    [(1, 1, False, 1), (4, 4, False, 4), (2, 8, False, 2), (0, 0, False, 1), (0, 8, False, 1), (4, 0, True, 4)],
)
def test_ranks_in_a_cluster(asked: int, visible: int, allow_cpu: bool, ranks: int) -> None:
    assert devices.ranks_on_node(job(asked, allow_cpu=allow_cpu), visible, in_cluster=True) == ranks


@pytest.mark.parametrize(("asked", "visible", "allow_cpu"), [(1, 0, False), (4, 1, False), (4, 1, True)])
def test_gpus_that_are_not_there(asked: int, visible: int, allow_cpu: bool) -> None:
    with pytest.raises(NoDevice, match=f"asked for {asked} GPUs per node, but this pod can use {visible}"):
        devices.ranks_on_node(job(asked, allow_cpu=allow_cpu), visible, in_cluster=True)


@pytest.mark.parametrize(("asked", "visible", "ranks"), [(8, 0, 1), (8, 1, 1), (1, 4, 4), (0, 0, 1)])
def test_ranks_on_a_laptop(asked: int, visible: int, ranks: int) -> None:
    assert devices.ranks_on_node(job(asked), visible, in_cluster=False) == ranks


@pytest.mark.parametrize(
    ("asked", "visible", "named", "shown"),
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
def test_a_job_sees_no_more_gpus_than_it_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: int, visible: int, named: str | None, shown: str | None
) -> None:
    """A single rank that saw two would train on both, as nn.DataParallel."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    expected = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    assert devices.environment(job(asked), visible, in_cluster=True) == expected
    assert devices.environment(job(asked), visible, in_cluster=False) == {}


def test_the_global_batch_must_be_shared_evenly() -> None:
    devices.check_batch(job(1), 4, 4)
    with pytest.raises(InvalidSpec, match=r"globalBatchSize is 16, which 3 processes .* use a multiple of 12"):
        devices.check_batch(job(1), 4, 3)
