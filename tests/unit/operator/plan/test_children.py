"""What the objects of an attempt contain beyond the spec."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.plan import Create, Plan
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    SETTINGS,
    begun,
    child_job,
    fail,
    job,
    prepared,
    retried,
    saved,
    step,
    with_status,
)


@pytest.mark.parametrize(
    ("asked", "took", "given"),
    [(120, None, 120), (120, 10, 120), (120, 100, 230), (20, 7200, 3600), (7200, 9000, 7200)],
)
def test_the_grace_period_grows_with_the_time_that_saving_took(asked: int, took: int | None, given: int) -> None:
    view = prepared(resources={"terminationGracePeriodSeconds": asked})
    view = saved(with_status(view, step(view)), 40, **({} if took is None else {"seconds": took}))
    planned = step(view)
    assert isinstance(planned.step, Create)
    template = planned.step.manifests[-1]["spec"]["template"]
    assert template["spec"]["terminationGracePeriodSeconds"] == given
    facts = json.loads(template["metadata"]["annotations"]["finetune-operator.io/attempt-facts"])
    assert facts["gracePeriodSeconds"] == given


def test_the_gpu_memory_of_the_nodes_reaches_preparing_unless_the_job_states_it() -> None:
    def memory(**spec: Any) -> int | None:
        view = job(**spec)
        planned = step(with_status(view, step(view, Snapshot(gpu_memory_bytes=40 * 2**30))))
        assert isinstance(planned.step, Create)
        note = planned.step.manifests[-1]["spec"]["template"]["metadata"]["annotations"]
        memory: int | None = json.loads(note["finetune-operator.io/resolved-job"])["runtime"].get("gpuMemoryBytes")
        return memory

    assert memory() == 40 * 2**30
    assert memory(resources={"gpuMemory": "80Gi"}) == 80 * 2**30


def test_image_and_digest_stay_as_accepted() -> None:
    view, _ = fail(begun(), 70)
    newer = SETTINGS.model_copy(update={"trainer_image": "registry.example/finetune-trainer:2"})
    view = with_status(view, step(view, after=10, settings=newer))
    planned = step(view, after=10, settings=newer)
    assert isinstance(planned.step, Create)
    container = planned.step.manifests[-1]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/finetune-trainer:1"


@pytest.mark.parametrize(("contract", "told"), [(3, None), (4, 2)])
def test_a_training_attempt_is_told_how_many_failures_are_left_if_its_contract_has_that_fact(
    contract: int, told: int | None
) -> None:
    """Trainers of contract 3 refuse a file with a key that they do not know."""
    view = begun(backoffLimit=3)
    view = replace(view, status={**view.status, "resolved": {**view.status["resolved"], "contract": contract}})
    view, _ = fail(view, 70)
    planned = step(retried(view, Snapshot((child_job(failed_reason="x"),)), after=10), after=10)
    assert facts(planned).get("restarts") == told


def test_a_prepare_attempt_is_told_of_no_restarts() -> None:
    view = job()
    assert "restarts" not in facts(step(with_status(view, step(view))))


def facts(planned: Plan) -> dict[str, Any]:
    """attempt.json of the attempt that is created."""
    assert isinstance(planned.step, Create)
    template = planned.step.manifests[-1]["spec"]["template"]
    written: dict[str, Any] = json.loads(template["metadata"]["annotations"]["finetune-operator.io/attempt-facts"])
    return written
