"""A job tells its end once, if somebody wants to know it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_api.presets import Defaults, fill
from finetune_operator.plan import Delete, Notify, Plan
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Read, Snapshot

from tests.unit.operator.make import SETTINGS, begun, child_job, fail, needs, step, with_status

CHAT: dict[str, Any] = {"notify": {"secret": "chat"}}
MADE = replace(Snapshot(), notified=True)


def ended(**spec: Any) -> JobView:
    """A job that has Failed at make.NOW."""
    view, planned = fail(begun(**spec), 65)
    assert planned.status.phase == "Failed"
    return view


def pod(planned: Plan) -> dict[str, Any]:
    assert isinstance(planned.step, Notify)
    spec: dict[str, Any] = planned.step.manifest["spec"]["template"]["spec"]
    return spec


def told(planned: Plan) -> dict[str, Any]:
    [variable] = [v for v in pod(planned)["containers"][0]["env"] if v["name"] == "FINETUNE_NOTIFICATION"]
    found: dict[str, Any] = json.loads(variable["value"].replace("$$", "$"))
    return found


def test_the_end_is_told_by_a_job_whose_name_is_that_of_the_end() -> None:
    view = ended(**CHAT)
    order, planned = needs(view)
    assert order == [Read.JOB, Read.NOTIFICATION]
    assert isinstance(planned.step, Notify)
    name = planned.step.manifest["metadata"]["name"]
    assert len(name) <= 63 - len("-abcde")
    again = step(view, after=30)
    assert isinstance(again.step, Notify)
    assert again.step.manifest == planned.step.manifest
    assert (told(planned)["phase"], told(planned)["reason"]) == ("Failed", "InvalidData")
    assert told(planned)["text"].startswith("FineTuneJob team/demo: Failed (InvalidData). ")


def test_once_the_job_exists_the_status_says_so_and_nothing_follows() -> None:
    view = ended(**CHAT)
    noted = step(view, MADE)
    assert (noted.step, noted.status.notified_time) == (None, "2026-01-31T12:00:00Z")
    order, after = needs(with_status(view, noted))
    assert (order, after.step) == ([], None)


def test_pods_that_still_run_are_ended_before() -> None:
    """Else a cluster that refuses the notification would let them keep their GPUs."""
    assert isinstance(step(ended(**CHAT), Snapshot((child_job(),))).step, Delete)


def test_the_secret_is_only_named() -> None:
    container = pod(step(ended(**CHAT)))["containers"][0]
    keys = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in container["env"] if "valueFrom" in v}
    assert keys == {
        "FINETUNE_NOTIFY_URL": {"name": "chat", "key": "url"},
        "FINETUNE_NOTIFY_HEADER": {"name": "chat", "key": "header", "optional": True},
    }


def test_the_pod_has_no_token_and_no_image_of_the_user() -> None:
    spec = pod(step(ended(**CHAT, resources={"image": "registry.example/own:1"})))
    assert spec["automountServiceAccountToken"] is False
    assert spec["containers"][0]["image"] == SETTINGS.trainer_image


@pytest.mark.parametrize(
    "spec", [{}, {"notify": {"secret": "chat", "when": ["Succeeded"]}}], ids=["nobody asks", "another end"]
)
def test_an_end_that_nobody_asks_for_costs_nothing(spec: dict[str, Any]) -> None:
    order, planned = needs(ended(**spec))
    assert (order, planned.step) == ([], None)


def test_an_old_end_is_no_news() -> None:
    order, planned = needs(ended(**CHAT), after=3601)
    assert (order, planned.step) == ([], None)


def test_a_preset_names_the_webhook_of_a_namespace() -> None:
    filled = fill(Defaults.model_validate(CHAT), {})
    view = ended()
    resolved = {**view.status["resolved"], "presets": {"source": "ConfigMap", "filled": filled}}
    assert isinstance(step(replace(view, status={**view.status, "resolved": resolved})).step, Notify)


def test_a_job_with_a_webhook_gets_nothing_of_the_preset() -> None:
    own = {"notify": {"secret": "own"}}
    assert "notify" not in fill(Defaults.model_validate({"notify": {"secret": "chat", "when": ["Failed"]}}), own)
