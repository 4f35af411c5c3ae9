"""Errors that nobody listed: the condition tells them, the deadline ends the attempt, and the job continues afterwards.

A failure takes seconds until it counts as lasting, so the jobs of this module wait together, each in its own namespace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.controlplane.lane import Lane, lane
from tests.controlplane.scene import Scene, stage
from tests.kube import Kube, Object

LASTING = [
    ("POST", "jobs", 500),
    ("POST", "jobs", 503),
    ("POST", "jobs", 429),
    ("POST", "jobs", 418),
    ("GET", "serviceaccounts", 502),
    ("PATCH", "serviceaccounts", 504),
    ("GET", "rolebindings", 500),
    ("PATCH", "rolebindings", 500),
]
"""Calls that an attempt cannot begin without, and answers that are no success and no refusal of an object."""
DEADLINES = {"failing": 500, "refused": 403, "conflicting": 409}
"""Answers to creating the child job of an attempt with a short deadline."""


Waiting = tuple[Lane, dict[Any, Scene], dict[Any, Object]]


@pytest.fixture(scope="module")
def waiting(
    kube: Kube, deployed: dict[str, str], example: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Waiting]:
    """An operator, a namespace with a job for each case, and what the jobs told before the errors ended."""
    manifest: Object = yaml.safe_load(example.read_text())
    errors: dict[str, tuple[str, str, int]] = {}
    scenes: dict[Any, Scene] = {}

    def refuse(method: str, namespace: str, resource: str) -> int:
        *call, code = errors.get(namespace, ("", "", 0))
        return code if call == [method, resource] else 0

    with ExitStack() as stack:
        cases: list[tuple[str, str, int] | str] = [*LASTING, *DEADLINES]
        for case in cases:
            made = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "errors-"}})
            name = made["metadata"]["name"]
            stack.callback(kube.delete, "Namespace", name)
            scenes[case] = stack.enter_context(stage(kube, name, manifest))
            errors[name] = case if isinstance(case, tuple) else ("POST", "jobs", DEADLINES[case])
        own = stack.enter_context(lane(kube, deployed, tmp_path_factory.mktemp("errors")))
        own.proxy.refuse = refuse
        own.operator.start()
        for case, scene in scenes.items():
            changes: Object = {"startDeadlineSeconds": 10, "backoffLimit": 0} if isinstance(case, str) else {}
            scene.submit(**changes)
        told = {case: scenes[case].tells("APIServerError") for case in LASTING}
        for case in LASTING:
            del errors[scenes[case].namespace]
        yield own, scenes, told


@pytest.mark.parametrize("case", LASTING, ids=str)
def test_a_lasting_error_is_told_and_taken_back(waiting: Waiting, case: tuple[str, str, int]) -> None:
    (own, scenes, told), (method, _, code) = waiting, case
    assert told[case]["phase"] == "Preparing"
    for word in (method, f"refused with {code}", "tries again"):
        assert word in told[case]["message"]
    assert own.operator.health() == (200, "ok\n")
    assert 'reconcile_failures_total{reason="APIServerError"}' in own.operator.get("metrics")[1]
    scenes[case].preparing()
    assert scenes[case].reaches("Preparing", "Fetching")["prepareAttempt"] == 1


@pytest.mark.parametrize("case", DEADLINES)
def test_the_deadline_ends_an_attempt_whatever_the_api_server_answers(waiting: Waiting, case: str) -> None:
    status = waiting[1][case].reaches("Failed", "StartDeadlineExceeded")
    assert "did not start within 10 s" in status["message"]
    assert f"refused with {DEADLINES[case]}" in status["message"]
