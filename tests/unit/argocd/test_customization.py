"""What Argo CD shows of a FineTuneJob and offers for it: health.lua and the actions, in upstream's test format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51

from tests.unit.argocd import lua, states
from tests.unit.argocd.states import CUSTOMIZATION

HEALTH_TESTS = yaml.safe_load((CUSTOMIZATION / "health_test.yaml").read_text())["tests"]
ACTION_TESTS = yaml.safe_load((CUSTOMIZATION / "actions" / "action_test.yaml").read_text())
HEALTH = {
    "new": "Progressing",
    "waiting-for-job": "Progressing",
    "preparing": "Progressing",
    "starting": "Progressing",
    "child-job-suspended": "Suspended",
    "queued": "Suspended",
    "deactivated": "Degraded",
    "running": "Progressing",
    "stopping": "Progressing",
    "waiting-for-retry": "Progressing",
    "ending-for-suspension": "Progressing",
    "suspended": "Suspended",
    "suspended-before-training": "Suspended",
    "resumed-with-misfit": "Degraded",
    "reopened": "Progressing",
    "succeeded": "Healthy",
    "failed": "Degraded",
    "invalid": "Degraded",
    "nothing-to-keep": "Degraded",
}
ENABLED = {
    "new": {"suspend"},
    "waiting-for-job": {"suspend"},
    "preparing": {"suspend"},
    "starting": {"suspend"},
    "child-job-suspended": {"suspend"},
    "queued": {"suspend"},
    "deactivated": {"suspend"},
    "running": {"suspend", "stop-and-keep"},
    "stopping": {"suspend"},
    "waiting-for-retry": {"suspend", "stop-and-keep"},
    "ending-for-suspension": {"resume", "stop-and-keep"},
    "suspended": {"resume", "stop-and-keep"},
    "suspended-before-training": {"resume"},
    "resumed-with-misfit": {"suspend", "stop-and-keep"},
    "reopened": {"suspend", "stop-and-keep"},
    "succeeded": set(),
    "failed": {"retry"},
    "invalid": {"retry"},
    "nothing-to-keep": set(),
}


def health(obj: states.Manifest) -> str:
    code: str = lua.run(CUSTOMIZATION / "health.lua", obj)["status"]
    return code


def act(action: str, obj: states.Manifest) -> Any:
    return lua.run(CUSTOMIZATION / "actions" / action / "action.lua", obj)


def discovered(obj: states.Manifest) -> dict[str, Any]:
    found: dict[str, Any] = lua.run(CUSTOMIZATION / "actions" / "discovery.lua", obj)
    return found


def load(folder: Path, path: str) -> states.Manifest:
    loaded: states.Manifest = yaml.safe_load((folder / path).read_text())
    return loaded


def test_the_fixtures_are_what_the_operator_writes() -> None:
    files = states.files()
    there = {path for folder in (states.TESTDATA, states.ACTION_TESTDATA) for path in folder.iterdir()}
    assert there == set(files)
    differ = [path.name for path, content in files.items() if path.read_text() != content]
    assert differ == [], "run `.venv/bin/python -m tests.unit.argocd.states` and look at what changes"


@pytest.mark.parametrize("case", HEALTH_TESTS, ids=lambda case: Path(case["inputPath"]).stem)
def test_health(case: dict[str, Any]) -> None:
    assert lua.run(CUSTOMIZATION / "health.lua", load(CUSTOMIZATION, case["inputPath"])) == case["healthStatus"]


def test_every_fixture_has_a_health_test() -> None:
    assert {CUSTOMIZATION / case["inputPath"] for case in HEALTH_TESTS} == set(states.TESTDATA.iterdir())


@pytest.mark.parametrize("state", HEALTH)
def test_each_state_has_a_health_also_while_it_is_stale_or_deleted(state: str) -> None:
    view = states.states()[state]
    now, later = states.manifest(view), states.manifest(states.stale(view))
    assert health(now) == HEALTH[state]
    # A health from before the last edit would let a sync wave pass, or fail, too early.
    assert health(later) == "Progressing"
    over = view.status.get("phase") in ("Succeeded", "Failed")
    assert health(states.deleted(now)) == (HEALTH[state] if over else "Degraded")


def test_every_phase_and_every_state_is_covered() -> None:
    known = states.states()
    assert set(known) == set(HEALTH) == set(ENABLED)
    phases = {view.status["phase"] for view in known.values()}
    assert phases == {"Pending", "Preparing", "Queued", "Starting", "Running", "Suspended", "Succeeded", "Failed"}


def test_a_job_without_status_waits_for_the_operator() -> None:
    new = states.manifest(states.states()["new"])
    del new["status"]
    assert health(new) == "Progressing"
    assert discovered(new)["suspend"]["disabled"] is False


@pytest.mark.parametrize("state", ENABLED)
def test_actions_are_enabled_where_they_have_an_effect(state: str) -> None:
    found = discovered(states.manifest(states.states()[state]))
    assert set(found) == {"suspend", "resume", "retry", "stop-and-keep"}
    assert {name for name, action in found.items() if not action["disabled"]} == ENABLED[state]


@pytest.mark.parametrize("case", ACTION_TESTS["discoveryTests"], ids=lambda case: Path(case["inputPath"]).stem)
def test_discovery(case: dict[str, Any]) -> None:
    found = discovered(load(CUSTOMIZATION / "actions", case["inputPath"]))
    # As Argo CD lists them: with a name, and `disabled` only if it is true.
    listed = [
        {"name": name} | {key: value for key, value in action.items() if value is not False}
        for name, action in found.items()
    ]
    assert sorted(listed, key=lambda action: action["name"]) == sorted(
        case["result"], key=lambda action: action["name"]
    )


@pytest.mark.parametrize("case", ACTION_TESTS["actionTests"], ids=lambda case: f"{case['action']}-{case['inputPath']}")
def test_action(case: dict[str, Any]) -> None:
    folder = CUSTOMIZATION / "actions"
    before = load(folder, case["inputPath"])
    if "expectedErrorMessage" in case:
        with pytest.raises(lua51.LuaError, match=case["expectedErrorMessage"]):
            act(case["action"], before)
        return
    assert act(case["action"], before) == load(folder, case["expectedOutputPath"])


def test_every_action_changes_the_spec_alone() -> None:
    """A change of the status would be a write of somebody else's fields."""
    failed = states.manifest(states.states()["failed"])
    changes: dict[str, states.Manifest] = {
        "suspend": {"suspend": True},
        "resume": {"suspend": False},
        "retry": {"retry": 1},
        "stop-and-keep": {"stop": "keep"},
    }
    for action, spec in changes.items():
        assert act(action, failed) == {**failed, "spec": {**failed["spec"], **spec}}


@pytest.mark.parametrize(("asked", "used", "next_one"), [(0, 0, 1), (2, 2, 3), (3, 1, 4), (None, 4, 5)])
def test_a_retry_is_above_every_value_that_was_used(asked: int | None, used: int, next_one: int) -> None:
    failed = states.manifest(states.states()["failed"])
    spec = failed["spec"] if asked is None else {**failed["spec"], "retry": asked}
    again = act("retry", {**failed, "spec": spec, "status": {**failed["status"], "retry": used}})
    assert again["spec"]["retry"] == next_one
