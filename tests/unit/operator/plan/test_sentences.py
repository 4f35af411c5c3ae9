"""A message that quotes others is made of sentences, however the quoted text ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.failures import over
from finetune_operator.plan.retries import QUOTED
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    NOW,
    TWO_NODES,
    among,
    begun,
    child_job,
    ended,
    fail,
    job,
    other,
    pod,
    result,
    step,
    with_status,
)
from tests.unit.operator.make import (
    over as ended_job,
)

Quotes = Callable[[str], FineTuneJobStatus]


def says(code: int, text: str, **spec: object) -> FineTuneJobStatus:
    """An attempt ends with a code and the trainer's message."""
    words = result(code, message=text).model_dump_json(by_alias=True)
    return fail(begun(**spec), code, terminated_message=words)[1].status


def waits(text: str, reason: str) -> FineTuneJobStatus:
    held = pod(waiting_reason=reason, waiting_message=text)
    return step(begun(), Snapshot((child_job(),), (held,))).status


def overdue(text: str) -> FineTuneJobStatus:
    view = begun(startDeadlineSeconds=60)
    stuck = Snapshot((child_job(),), (pod(unschedulable=text),))
    view = with_status(view, step(view, stuck, after=61))
    return step(view, Snapshot(), after=70).status


def evicted(text: str) -> FineTuneJobStatus:
    usage = f'TerminationByKubelet: Usage of EmptyDir volume "t" exceeds the limit {text}'
    return fail(begun(), 137, disruption=usage)[1].status


def after_failure(text: str) -> FineTuneJobStatus:
    status = says(70, text)
    return over(status.model_copy(update={"reason": "OperatorError"}), 1, NOW)


def depends(text: str) -> FineTuneJobStatus:
    failed = other("sft", status=ended_job("Failed", "InvalidData", text))
    return step(job(model={"fromJob": "sft"}), among(failed)).status


def warned(text: str) -> FineTuneJobStatus:
    facts = {"digest": "d", "rows": 1, "tokens": 1, "trainedTokens": 1, "warning": text}
    view = job()
    view = with_status(view, step(view))
    words = result(0, kind="prepare", prepared=facts).model_dump_json(by_alias=True)
    done = Snapshot((child_job(kind="prepare", complete=True),), (ended(0, kind="prepare", terminated_message=words),))
    status = step(view, done).status
    message = next(c.message for c in status.conditions or [] if c.type == "Prepared")
    return status.model_copy(update={"message": message})


QUOTING: dict[str, Quotes] = {
    "a retry": lambda text: says(70, text),
    "a disruption": lambda text: fail(begun(), 137, disruption=f"EvictionByEvictionAPI: {text}")[1].status,
    "a limit": lambda text: says(70, text, backoffLimit=0),
    "the smallest micro-batch": lambda text: says(71, text, training={"epochs": 1, "microBatchSize": 1}),
    "a smaller micro-batch": lambda text: says(71, text, training={"epochs": 1, "microBatchSize": 2}),
    "the end of a failure": after_failure,
    "no node": lambda text: step(begun(), Snapshot((child_job(),), (pod(unschedulable=text),))).status,
    "no node for some": lambda text: (
        step(begun(resources=TWO_NODES), Snapshot((child_job(),), (pod(), pod(rank=1, unschedulable=text)))).status
    ),
    "no image": lambda text: waits(text, "ErrImagePull"),
    "no configuration": lambda text: waits(text, "CreateContainerConfigError"),
    "a refusal": lambda text: step(begun(), Snapshot(refusal=text), after=5).status,
    "an invalid object": lambda text: step(begun(), Snapshot(refusal=text, invalid=True), after=5).status,
    "a missed deadline": overdue,
    "an eviction for an own limit": evicted,
    "a failed job that it depends on": depends,
    "a warning of preparing": warned,
}


@pytest.mark.parametrize("case", QUOTING)
@pytest.mark.parametrize("ending", ["", ".", ". ", "!"])
def test_a_quoted_text_ends_with_one_mark_before_the_next_sentence(case: str, ending: str) -> None:
    message = QUOTING[case](f"because of this{ending}").message or ""
    mark = ending.strip() or "."
    _, found, rest = message.partition("because of this")
    assert found
    assert rest.startswith(mark)
    assert not rest.startswith(mark + ".")
    assert rest == mark or rest[1] == " "
    assert not rest[1:].lstrip()[:1].islower()


def test_a_text_that_is_cut_ends_with_a_mark_too() -> None:
    assert "x. Attempt 2 begins" in (says(70, "x" * (QUOTED + 50)).message or "")
