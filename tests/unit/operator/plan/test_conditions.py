"""Conditions are set whatever an earlier status holds."""

import pytest
from finetune_api.status import ConditionType, FineTuneJobStatus, Reason
from finetune_operator.plan.conditions import set_condition
from finetune_operator.views.metadata import format_time

from tests.unit.operator import make


def transition(kept: str, value: str) -> str:
    old = {"type": "Running", "status": value, "reason": "Starting", "message": "", "lastTransitionTime": kept}
    status = FineTuneJobStatus.read({"conditions": [old]})
    after = set_condition(status, ConditionType.RUNNING, False, Reason.RETRY_BACKOFF, "It waits.", 1, make.NOW)
    (condition,) = after.conditions or []
    return condition.last_transition_time


def test_the_transition_time_is_kept_while_the_value_is() -> None:
    assert transition("2026-01-31T09:00:00Z", "False") == "2026-01-31T09:00:00Z"
    assert transition("2026-01-31T09:00:00Z", "True") == format_time(make.NOW)


@pytest.mark.parametrize("kept", ["", "yesterday", "2026-99-99", "2026-01-31", "é" * 300])
def test_what_is_no_time_is_replaced(kept: str) -> None:
    assert transition(kept, "False") == format_time(make.NOW)
