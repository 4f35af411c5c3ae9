"""The terms of a job that is resumed: what is fixed again, what stays, and when the data is prepared again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_api.contract import canonical
from finetune_api.stored_job import load, store
from finetune_operator.plan import Create, Plan
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import SETTINGS, child_job, condition, ended, job, result, running, step, with_status
from tests.unit.operator.plan.test_suspension import at_rest, set_suspend, trains

TOO_LARGE = "The model needs at least 12 GiB of GPU memory, and a GPU has 8 GiB."
NEWER = SETTINGS.model_copy(update={"trainer_image": "registry.example/finetune-trainer:2"})


def edited(**spec: Any) -> JobView:
    """A suspended job that was training, after a change of its spec."""
    return set_suspend(at_rest(), **spec)


def resume(view: JobView, **settings: Any) -> Plan:
    return step(set_suspend(view, suspend=False), **settings)


def document(planned: Plan) -> dict[str, Any]:
    assert planned.status.resolved is not None
    assert planned.status.resolved.job is not None
    parsed: dict[str, Any] = json.loads(load(planned.status.resolved.job))
    return parsed


def test_resuming_fixes_the_image_again_and_keeps_the_digest() -> None:
    before = at_rest()
    resumed = resume(before, settings=NEWER)
    assert resumed.status.resolved is not None
    assert resumed.status.resolved.image == NEWER.trainer_image
    assert resumed.status.resolved.digest == before.status["resolved"]["digest"]
    own = resume(edited(resources={"image": "registry.example/own:1"}), settings=NEWER)
    assert own.status.resolved is not None
    assert own.status.resolved.image == "registry.example/own:1"


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"resources": {"nodeSelector": {"gpu": "a100"}, "memory": "64Gi"}}, False),
        ({"prepare": {"cpu": "8", "memory": "16Gi"}}, False),
        ({"resources": {"gpuMemory": "80Gi"}}, True),
        ({"resources": {"gpusPerNode": 2}}, True),
        ({"resources": {"nodes": 2}}, True),
    ],
    ids=str,
)
def test_data_is_prepared_again_only_if_the_estimate_changes(changes: dict[str, Any], again: bool) -> None:
    view = edited(**changes)
    resumed = resume(view)
    assert resumed.status.phase == ("Preparing" if again else "Starting")
    assert (resumed.status.prepare_attempt, resumed.status.attempt) == ((1, 1) if again else (None, 2))
    assert condition(resumed.status, "Prepared")[0] == ("Unknown" if again else "True")
    created = step(with_status(set_suspend(view, suspend=False), resumed))
    assert isinstance(created.step, Create)
    annotations = created.step.manifests[-1]["spec"]["template"]["metadata"]["annotations"]
    received = json.loads(annotations["finetune-operator.io/resolved-job"])
    assert received == document(resumed)
    assert received["digest"] == view.status["resolved"]["digest"]
    resources = changes.get("resources", {})
    assert received["runtime"]["nodes"] == resources.get("nodes", 1)
    assert received["runtime"]["gpusPerNode"] == resources.get("gpusPerNode", 1)


def test_training_follows_when_the_data_is_prepared_again() -> None:
    view = edited(resources={"gpusPerNode": 2})
    view = with_status(set_suspend(view, suspend=False), resume(view))
    done = child_job(1, "prepare", complete=True)
    planned = step(view, Snapshot((done,)))
    assert (planned.status.phase, planned.status.attempt) == ("Starting", 2)
    assert condition(planned.status, "Prepared")[0] == "True"


def test_resources_that_do_not_fit_hold_the_job_until_they_are_corrected() -> None:
    view = edited(resources={"gpusPerNode": 3})
    warned = step(view)
    assert warned.status.phase == "Suspended"
    assert "which 3 GPUs cannot share evenly" in (warned.status.message or "")
    assert condition(warned.status, "Accepted") == ("False", "InvalidSpec")
    held = resume(with_status(view, warned))
    assert (held.status.phase, held.status.reason, held.step) == ("Suspended", "InvalidSpec", None)
    assert condition(held.status, "Suspended") == ("True", "InvalidSpec")
    assert "Set spec.suspend to true, correct spec.resources" in (held.status.message or "")
    view = with_status(set_suspend(view, suspend=False), held)
    assert step(view, after=60).status == held.status
    view = set_suspend(view, resources={"gpusPerNode": 2})
    view = with_status(view, step(view))
    assert condition(step(view).status, "Suspended") == ("True", "SuspendedByUser")
    resumed = resume(view)
    assert resumed.status.phase == "Preparing"
    assert condition(resumed.status, "Accepted") == ("True", "Accepted")


def refused() -> JobView:
    """A job that was resumed with GPUs for which its trainer finds the model too large."""
    view = set_suspend(edited(resources={"gpusPerNode": 2, "gpuMemory": "8Gi"}), suspend=False)
    view = with_status(view, step(view))
    done = child_job(1, "prepare", failed_reason="PodFailurePolicy")
    told = json.dumps(result(64, message=TOO_LARGE, kind="prepare", reason="InvalidSpec").to_dict())
    pods = (ended(64, kind="prepare", terminated_message=told),)
    return with_status(view, step(view, Snapshot((done,), pods)))


def test_gpus_that_are_too_small_hold_a_resumed_job_until_they_are_corrected() -> None:
    view = refused()
    assert (view.status["phase"], view.status["reason"]) == ("Suspended", "InvalidSpec")
    assert f"The job cannot be resumed: {TOO_LARGE}" in view.status["message"]
    again = step(view, after=60)
    assert (again.step, again.status.prepare_attempt, again.status.phase) == (None, 1, "Suspended")
    assert again.status.message == view.status["message"]

    rests = set_suspend(view)
    rests = with_status(rests, step(rests))
    assert rests.status["reason"] == "SuspendedByUser"
    assert resume(rests).status.reason == "InvalidSpec", "nothing was corrected"
    other = resume(rests, settings=NEWER)
    assert (other.status.phase, other.status.prepare_attempt) == ("Preparing", 2), "another trainer may find a way"
    resumed = resume(set_suspend(rests, resources={"gpusPerNode": 2, "gpuMemory": "80Gi"}))
    assert (resumed.status.phase, resumed.status.prepare_attempt) == ("Preparing", 2)
    assert condition(resumed.status, "Accepted") == ("True", "Accepted")


def test_a_job_that_is_held_can_be_stopped_and_kept() -> None:
    planned = step(set_suspend(refused(), suspend=False, stop="keep"))
    assert planned.status.phase != "Failed"


def test_resources_of_a_new_suspended_job_can_be_corrected() -> None:
    view = job(suspend=True, resources={"gpusPerNode": 3})
    view = with_status(view, rest := step(view))
    assert condition(rest.status, "Accepted") == ("False", "InvalidSpec")
    held = step(set_suspend(view, suspend=False))
    assert (held.status.phase, held.status.reason) == ("Suspended", "InvalidSpec")
    fixed = set_suspend(with_status(view, held), suspend=False, resources={"gpusPerNode": 2})
    assert step(fixed).status.phase == "Preparing"


def test_a_suspension_that_the_operator_missed_ends_the_attempt_if_its_gpus_change() -> None:
    view = trains()
    view = replace(view, spec={**view.spec, "resources": {"gpusPerNode": 2}}, generation=4)
    snapshot = Snapshot((child_job(),), (running(),))
    ending = step(view, snapshot)
    assert ending.status.reason == "Ending"
    view = with_status(view, ending)
    view = with_status(view, step(view))
    planned = step(view)
    assert planned.status.phase == "Preparing"
    assert document(planned)["runtime"]["gpusPerNode"] == 2


def test_a_job_that_this_release_resolves_differently_keeps_what_decides_its_result() -> None:
    view = edited(resources={"gpusPerNode": 2})
    resolved = view.status["resolved"]
    other = {**json.loads(load(resolved["job"])), "digest": "sha256:other", "contract": 2, "invented": 1}
    fixed = {**resolved, "digest": "sha256:other", "contract": 2, "job": store(canonical(other))}
    view = replace(view, status={**view.status, "resolved": fixed})
    resumed = resume(view, settings=NEWER)
    assert resumed.status.resolved is not None
    assert resumed.status.resolved.image == SETTINGS.trainer_image, "the image that reads this contract"
    received = document(resumed)
    assert (received["contract"], received["digest"], received["invented"]) == (2, "sha256:other", 1)
    assert received["runtime"]["gpusPerNode"] == 2


def test_the_gpu_memory_of_other_nodes_is_read_again() -> None:
    reading = SETTINGS.model_copy(update={"read_node_labels": True})
    view = edited(resources={"nodeSelector": {"gpu": "a100"}})
    resumed = step(set_suspend(view, suspend=False), Snapshot(gpu_memory_bytes=80 * 2**30), settings=reading)
    assert resumed.status.phase == "Preparing"
    assert document(resumed)["runtime"]["gpuMemoryBytes"] == 80 * 2**30
    unknown = step(set_suspend(view, suspend=False), Snapshot(), settings=reading)
    assert unknown.status.phase == "Starting", "no node of this kind exists at the moment"
