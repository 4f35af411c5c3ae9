"""What acceptance fixes stays fixed: whatever the operator's release, its settings or the CRD are by then."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_api.contract import canonical
from finetune_api.status import Resolved
from finetune_api.stored_job import load, store
from finetune_operator.plan import Create, Plan
from finetune_operator.settings import Settings
from finetune_operator.views.child_job import AcceptedTerms
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    SETTINGS,
    begun,
    child_job,
    condition,
    ended,
    fail,
    job,
    prepared,
    running,
    step,
    with_status,
)

REMOTE = SETTINGS.model_copy(update={"allow_remote_code": True})
UNDER_WAY = Snapshot((child_job(),), (running(),))


def accepted(settings: Settings = SETTINGS, **spec: Any) -> JobView:
    """A prepared job whose first training attempt is in the status."""
    view = prepared(**spec)
    return with_status(view, step(view, settings=settings))


def document(planned: Plan) -> str:
    """What the pods of the attempt receive."""
    assert isinstance(planned.step, Create)
    annotations = planned.step.manifests[-1]["spec"]["template"]["metadata"]["annotations"]
    return str(annotations["finetune-operator.io/resolved-job"])


def retry(view: JobView) -> Plan:
    """The plan that creates the attempt after one that has failed by itself."""
    view, _ = fail(view, 70)
    view = with_status(view, step(view, after=60))
    return step(view, after=60)


def message(planned: Plan) -> str:
    return next(c.message for c in planned.status.conditions or [] if c.type == "Accepted")


def with_stored(view: JobView, **changes: Any) -> JobView:
    """The job as another release resolved it."""
    resolved = view.status["resolved"]
    stored = store(canonical({**json.loads(load(resolved["job"])), **changes}))
    fixed = {name: changes[name] for name in ("contract", "digest") if name in changes}
    return replace(view, status={**view.status, "resolved": {**resolved, "job": stored, **fixed}})


@pytest.mark.parametrize(
    "spec",
    [
        {"invented": False},
        {"training": {"epochs": 1, "invented": 5}},
        {"training": {"epochs": 1, "scheduler": "invented"}},
        {"datasets": [{"source": "gs://bucket/rows", "format": "invented"}]},
        {"stage": "grpo", "grpo": {"groupSize": 4}},
        {"model": {"source": "pvc://models/base", "trustRemoteCode": True}},
        {"training": {"epochs": 1, "globalBatchSize": 10**9}},
        {"training": "of another type"},
        {"resources": {"tolerations": [{"effect": "Invented"}]}},
        {"resources": {"invented": 1}},
    ],
    ids=str,
)
def test_a_later_refusal_never_fails_a_job_nor_changes_its_attempts(spec: dict[str, Any]) -> None:
    """A setting that was switched off, a field, a value or a stage that this release does not know."""
    view = accepted()
    changed = replace(view, spec={**view.spec, **spec})

    under_way = step(changed, UNDER_WAY)
    assert (under_way.status.phase, under_way.step) == ("Running", None)
    assert condition(under_way.status, "Accepted")[0] == "True"

    assert document(step(changed)) == document(step(view))
    assert document(retry(changed)) == document(step(view))
    _, failed = fail(changed, 64)
    assert failed.status.phase == "Failed", "its own end is judged as ever"


def test_a_later_refusal_is_told() -> None:
    view = accepted(REMOTE, model={"source": "pvc://models/base", "trustRemoteCode": True})
    planned = step(view, UNDER_WAY)
    assert condition(planned.status, "Accepted") == ("True", "AcceptedEarlier")
    assert message(planned).startswith("The job was accepted earlier and continues as it was accepted. Now it would be")
    assert json.loads(document(step(view)))["runtime"]["allowRemoteCode"]
    assert condition(step(view, UNDER_WAY, settings=REMOTE).status, "Accepted") == ("True", "Accepted")


def test_fields_that_this_release_does_not_know_are_ignored_and_told() -> None:
    planned = step(job(later=False, training={"epochs": 1, "invented": 1}))
    assert planned.status.phase == "Preparing"
    assert message(planned) == (
        "The spec is valid. This release does not know these fields and ignores them: spec.training.invented,"
        " spec.later."
    )


def test_a_field_by_the_name_of_another_trainer_is_told_with_the_field_to_use() -> None:
    ignored = step(job(training={"epochs": 1, "num_train_epochs": 3}))
    assert message(ignored).endswith("ignores them: spec.training.num_train_epochs (use spec.training.epochs).")
    refused = step(job(training={"num_train_epochs": 3}))
    assert condition(refused.status, "Accepted") == ("False", "InvalidSpec")
    assert "unknown field spec.training.num_train_epochs (use spec.training.epochs)" in message(refused)


def test_values_that_this_release_does_not_know_keep_a_new_job_pending() -> None:
    planned = step(job(training={"epochs": 1, "scheduler": "invented"}))
    assert (planned.status.phase, planned.step) == ("Pending", None)
    assert condition(planned.status, "Accepted") == ("Unknown", "NotSupported")
    assert "spec.training.scheduler" in message(planned)


def test_an_invalid_new_job_fails_as_ever() -> None:
    specs: list[dict[str, Any]] = [{"training": {"epochs": 1, "seed": []}}, {"model": {}}, {"resources": {"nodes": 3}}]
    for spec in specs:
        assert step(job(**spec)).status.phase == "Failed"


def test_no_attempt_is_created_from_sections_that_cannot_be_read() -> None:
    view = accepted()
    strange = replace(view, spec={**view.spec, "resources": {"volumes": [{"name": "new", "invented": {}}]}})
    held = step(strange)
    assert (held.status.phase, held.status.reason, held.step) == ("Starting", "NotSupported", None)
    assert condition(held.status, "Accepted") == ("Unknown", "NotSupported")
    assert "spec.resources" in (held.status.message or "")
    assert step(strange, UNDER_WAY).status.phase == "Running"
    done = Snapshot((child_job(complete=True),), (ended(0),))
    assert step(strange, done).status.phase == "Succeeded"
    assert isinstance(step(with_status(view, held)).step, Create), "it continues once it can be read"


@pytest.mark.parametrize("changes", [{"contract": 2}, {"contract": 4, "invented": {"a": 1}}, {"stage": "grpo"}])
def test_an_attempt_receives_what_another_release_resolved_with_its_contract(changes: dict[str, Any]) -> None:
    view = with_stored(accepted(), **changes)
    received = document(step(view))
    assert received == load(view.status["resolved"]["job"])
    assert json.loads(received) == {**json.loads(document(step(accepted()))), **changes}


def test_a_difference_of_digests_is_noted_and_changes_nothing() -> None:
    view = with_stored(accepted(), digest="sha256:of-another-release")
    planned = step(view)
    assert isinstance(planned.step, Create)
    assert planned.step.note.startswith("accepted with digest sha256:of-another-release; this release would resolve it")
    assert json.loads(document(planned))["digest"] == "sha256:of-another-release"
    same = step(accepted())
    assert isinstance(same.step, Create)
    assert same.step.note == ""


def test_checkpoints_to_keep_may_be_changed_while_the_job_lives() -> None:
    view = accepted()
    changed = replace(view, spec={**view.spec, "checkpoints": {"everyMinutes": 15, "keep": 7}})
    before, after = (json.loads(document(step(one))) for one in (view, changed))
    assert after == {**before, "checkpoints": {**before["checkpoints"], "keep": 7}}


def without_job(view: JobView) -> JobView:
    """The job as a release left it that did not keep the resolved job."""
    resolved = {name: value for name, value in view.status["resolved"].items() if name != "job"}
    return replace(view, status={**view.status, "resolved": resolved})


def test_a_status_without_the_resolved_job_takes_it_from_the_newest_child_job() -> None:
    view = with_stored(accepted(), invented=1)
    terms = AcceptedTerms([], Resolved.model_validate(view.status["resolved"]))
    planned = step(without_job(view), replace(UNDER_WAY, accepted_terms=terms))
    assert planned.status.to_dict()["resolved"] == view.status["resolved"]

    other = AcceptedTerms([], terms.resolved.model_copy(update={"digest": "sha256:of-another-job"}))
    planned = step(without_job(view), replace(UNDER_WAY, accepted_terms=other))
    assert planned.status.to_dict()["resolved"] == accepted().status["resolved"], "resolved again"


def test_a_status_without_the_resolved_job_and_without_child_jobs_resolves_again() -> None:
    view = without_job(with_stored(accepted(), contract=2, digest="sha256:older"))
    planned = step(view)
    resolved = planned.status.resolved
    assert resolved is not None
    assert resolved.job is not None
    assert (resolved.contract, resolved.digest) == (2, "sha256:older")
    received = json.loads(load(resolved.job))
    assert (received["contract"], received["digest"]) == (2, "sha256:older")


def test_an_accepted_job_that_cannot_be_resolved_again_waits() -> None:
    view = without_job(accepted(REMOTE, model={"source": "pvc://models/base", "trustRemoteCode": True}))
    planned = step(view, UNDER_WAY)
    assert planned.step is None
    assert planned.status.phase == view.status["phase"], "an attempt may run"
    assert condition(planned.status, "Accepted") == ("Unknown", "NotSupported")


@pytest.mark.parametrize("stored", ["", "not base64!", "bm8gemxpYg==", store("[]"), store("{}"), "cut"])
def test_a_stored_job_that_cannot_be_read_holds_the_job(stored: str) -> None:
    view = accepted()
    stored = view.status["resolved"]["job"][:40] if stored == "cut" else stored
    spoiled = replace(view, status={**view.status, "resolved": {**view.status["resolved"], "job": stored}})
    for snapshot in (Snapshot(), UNDER_WAY):
        planned = step(spoiled, snapshot)
        assert (planned.status.phase, planned.step) == (view.status["phase"], None)
        assert condition(planned.status, "Accepted") == ("Unknown", "NotSupported")


def test_a_resolved_job_that_does_not_fit_into_the_status_is_refused() -> None:
    words = [hashlib.sha256(str(number).encode()).hexdigest() * 14 for number in range(64)]
    sources = ["".join(hashlib.sha256(word[n:].encode()).hexdigest() for n in range(14)) for word in words]
    for texts, phase in ((words, "Preparing"), (sources, "Failed")):
        planned = step(job(datasets=[{"source": f"pvc://models/{text}", "format": "openai"} for text in texts]))
        assert planned.status.phase == phase, planned.status.message
    assert planned.status.reason == "InvalidSpec"
    assert "at most 32,768 fit into the job's status. Name fewer datasets" in (planned.status.message or "")


def test_storing_is_exact_and_deterministic() -> None:
    text = document(step(begun())) + "é漢"
    assert load(store(text)) == text
    assert store(text) == store(text)
    with pytest.raises(ValueError, match="longer than 65536 bytes"):
        load(store("a" * 70_000))
