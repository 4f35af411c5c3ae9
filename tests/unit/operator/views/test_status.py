"""Statuses of earlier releases are read in today's form."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.views.status import parse_status

from tests.unit.operator.make import MOMENT

ATTEMPT: dict[str, Any] = {"number": 1, "job": "demo-0a1b2-1", "state": "Starting", "startTime": MOMENT}


def parsed(name: str, **fields: Any) -> tuple[str, str | None, str | None, str | None]:
    """State, cause, reason and message of an attempt."""
    status = parse_status({"phase": "Running", name: [{**ATTEMPT, **fields}]})
    [attempt] = (status.attempts if name == "attempts" else status.prepare_attempts) or []
    return attempt.state, attempt.cause, attempt.reason, attempt.message


@pytest.mark.parametrize("name", ["attempts", "prepareAttempts"])
@pytest.mark.parametrize("state", ["Starting", "Running"])
@pytest.mark.parametrize("reason", ["StartDeadlineExceeded", "Disrupted"])
def test_the_reason_of_an_unfinished_attempt_is_the_cause_of_its_end(name: str, state: str, reason: str) -> None:
    old = parsed(name, state=state, reason=reason, message="why")
    assert old == ("Ending", reason, None, "why")
    assert old == parsed(name, state="Ending", cause=reason, message="why"), "as it is written today"


@pytest.mark.parametrize(
    "fields", [{"state": "Starting"}, {"state": "Running"}, {"state": "Ended", "reason": "Disrupted", "message": "why"}]
)
def test_other_attempts_stay_as_they_are(fields: dict[str, Any]) -> None:
    assert parsed("attempts", **fields) == (fields["state"], None, fields.get("reason"), fields.get("message"))


def test_a_status_without_attempts() -> None:
    assert parse_status({}).to_dict() == {}
