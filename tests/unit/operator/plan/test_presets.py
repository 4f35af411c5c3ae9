"""Presets in the life of a job: filled in at acceptance, kept for all attempts, compared again when it is resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.presets import Presets
from finetune_operator.names import PRESETS_ANNOTATION
from finetune_operator.plan import Create, Need, Plan, plan
from finetune_operator.settings import Settings, from_environment
from finetune_operator.views.child_job import accepted_terms
from finetune_operator.views.job import JobView
from finetune_operator.views.presets import PresetsView, presets_view
from finetune_operator.views.snapshot import Read, Snapshot
from finetune_operator.views.workload import QueueView

from tests.unit.operator.make import (
    NOW,
    SETTINGS,
    among,
    begun,
    child_job,
    condition,
    fail,
    job,
    needs,
    other,
    prepared,
    running,
    step,
    wait,
    with_status,
)
from tests.unit.operator.plan.test_suspension import at_rest, set_suspend

DEFAULTS: dict[str, Any] = {
    "image": "registry.example/preset:1",
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "podLabels": {"team": "nlp"},
    "cpuLimit": "8",
    "ttlSecondsAfterFinished": 60,
}
BOUNDS: dict[str, Any] = {"gpus": 4, "memory": "32Gi", "sources": ["pvc://"]}


def config_map(data: Any) -> dict[str, Any]:
    meta = {"namespace": "team", "name": "finetune-presets", "uid": "uid", "resourceVersion": "1"}
    return {"metadata": meta, "data": data}


def having(defaults: dict[str, Any] | None = None, **bounds: Any) -> Snapshot:
    """The snapshot of a job whose namespace has these presets."""
    presets = Presets.model_validate({"defaults": defaults or {}, "bounds": bounds})
    return Snapshot(presets=PresetsView(presets))


SET = having(DEFAULTS, **BOUNDS)
BROKEN = Snapshot(presets=presets_view(config_map({"presets.yaml": "defaults: {imagee: a}"})))


def accepted(snapshot: Snapshot = SET, **spec: Any) -> JobView:
    """A prepared job whose first training attempt is in the status."""
    view = prepared(**spec)
    return with_status(view, step(view, snapshot))


def template(planned: Plan) -> dict[str, Any]:
    assert isinstance(planned.step, Create)
    found: dict[str, Any] = planned.step.manifests[-1]["spec"]["template"]
    return found


def told(planned: Plan, kind: str = "Accepted") -> str:
    return next(c.message for c in planned.status.conditions or [] if c.type == kind)


def test_pods_get_what_the_job_leaves_out_and_the_status_says_it() -> None:
    view = accepted(resources={"podLabels": {"mine": "1"}, "cpuLimit": "6"})
    resolved = view.status["resolved"]
    assert resolved["image"] == "registry.example/preset:1"
    assert resolved["presets"]["source"] == "ConfigMap finetune-presets of namespace team"
    assert resolved["presets"]["bounds"] == BOUNDS
    assert resolved["presets"]["filled"]["resources"]["podLabels"] == {"team": "nlp"}
    pod = template(step(view))
    assert pod["metadata"]["labels"].items() >= {"team": "nlp", "mine": "1"}.items()
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert {"key": "gpu", "operator": "Exists"} in pod["spec"]["tolerations"]
    [container] = pod["spec"]["containers"]
    assert container["image"] == "registry.example/preset:1"
    assert container["resources"]["limits"]["cpu"] == "6"


QUEUES = having({"queue": "team", "prepareQueue": "cpus"}, queues=["team", "cpus", "night"])


def queue_of(planned: Plan) -> tuple[str | None, bool]:
    """The queue of the child job that is created, and whether only Kueue starts it."""
    assert isinstance(planned.step, Create)
    child = planned.step.manifests[-1]
    return child["metadata"]["labels"].get("kueue.x-k8s.io/queue-name"), bool(child["spec"].get("suspend"))


def test_child_jobs_join_the_queues_of_the_presets() -> None:
    view = job()
    view = with_status(view, step(view, QUEUES))
    assert view.status["resolved"]["presets"]["filled"] == {"queue": "team", "prepare": {"queue": "cpus"}}
    assert queue_of(step(view, QUEUES)) == ("cpus", True)
    assert queue_of(step(accepted(QUEUES))) == ("team", True)
    assert queue_of(step(accepted(QUEUES, queue="night"))) == ("night", True), "what the job names stays"
    assert queue_of(step(accepted(having(queues=["team"])))) == (None, False), "a bound alone puts no job into a queue"


def test_a_queue_that_is_not_allowed_is_refused_by_name() -> None:
    planned = step(job(queue="other", prepare={"queue": "mine"}), QUEUES)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "InvalidSpec")
    message = planned.status.message or ""
    assert "spec.queue is other, and only team, cpus, night is allowed (bounds.queues)" in message
    assert "spec.prepare.queue is mine" in message


def test_a_suspended_job_cannot_move_to_a_queue_that_is_not_allowed() -> None:
    view = edited(at_rest(), queue="other")
    held = step(view, QUEUES)
    assert (held.status.phase, held.status.reason) == ("Suspended", "InvalidSpec")
    assert "spec.queue is other" in (held.status.message or "")
    assert "correct spec.resources, prepare or queue" in (held.status.message or "")
    view = edited(with_status(view, held), queue="night")
    assert queue_of(step(with_status(view, step(view, QUEUES)))) == ("night", True)


def test_a_queue_of_the_presets_without_kueue_is_not_called_the_jobs_own() -> None:
    view = with_status(view := accepted(QUEUES), step(view))
    waiting = replace(child_job(), suspended=True, queue="team")
    planned = step(view, Snapshot((waiting,), queue=QueueView(unknown="no Kueue")))
    assert planned.status.reason == "NoWorkload"
    assert "The presets name queue team, but this cluster has no Kueue" in (planned.status.message or "")
    assert "take the queue out of the presets" in (planned.status.message or "")


def test_a_later_change_of_the_presets_concerns_no_attempt() -> None:
    view = accepted()
    failed, _ = fail(view, 70)
    for now in (BROKEN, having({"image": "registry.example/preset:2"}, gpus=0), Snapshot()):
        later = with_status(failed, step(failed, now, after=60))
        again = step(later, now, after=60)
        assert template(again)["spec"] == template(step(view))["spec"]
        assert needs(later, now, after=60)[0] == [Read.JOB]


def test_a_job_beyond_the_bounds_is_refused_by_name() -> None:
    planned = step(job(resources={"gpusPerNode": 8}, model={"source": "hf://org/x"}), SET)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "InvalidSpec")
    message = planned.status.message or ""
    assert "(ConfigMap finetune-presets of namespace team)" in message
    assert "gpusPerNode is 8, and at most 4 is allowed (bounds.gpus)" in message
    assert "spec.model.source is hf://org/x, and only pvc:// is allowed (bounds.sources)" in message
    assert planned.status.resolved is None


def test_a_job_that_names_another_job_is_refused_before_it_waits() -> None:
    asks: dict[str, Any] = {"model": {"fromJob": "first"}, "resources": {"gpusPerNode": 8}}
    planned = step(job(**asks), replace(among(other("first")), presets=SET.presets))
    assert (planned.status.phase, planned.status.reason) == ("Failed", "InvalidSpec")


def test_broken_presets_hold_new_jobs_until_they_are_repaired() -> None:
    view = job()
    planned = step(view, BROKEN)
    assert (planned.status.phase, planned.status.reason) == ("Pending", "PresetsInvalid")
    assert condition(planned.status, "Accepted") == ("Unknown", "PresetsInvalid")
    assert "unknown field defaults.imagee. Correct the ConfigMap, or delete it." in (planned.status.message or "")
    view = with_status(view, planned)
    assert wait(step(view, BROKEN)) is None, "no poll"
    assert step(view, SET).status.phase == "Preparing"
    assert step(view).status.phase == "Preparing", "somebody deleted the ConfigMap"


@pytest.mark.parametrize("data", [None, {}, {"preset.yaml": ""}])
def test_a_config_map_without_the_key_is_broken(data: Any) -> None:
    """A typing mistake must not lift the bounds."""
    planned = step(job(), Snapshot(presets=presets_view(config_map(data))))
    assert "it has no key presets.yaml" in (planned.status.message or "")


def test_the_installation_has_presets_for_namespaces_without_any() -> None:
    settings = from_environment(
        {"FINETUNE_TRAINER_IMAGE": SETTINGS.trainer_image, "FINETUNE_PRESETS": '{"bounds": {"gpus": 0}}'}
    )
    refused = step(job(), settings=settings)
    assert "chart value presets.default" in (refused.status.message or "")
    assert step(job(), having(), settings=settings).status.phase == "Preparing", "the namespace has its own"
    nothing = from_environment({"FINETUNE_TRAINER_IMAGE": "i", "FINETUNE_PRESETS": ""})
    assert nothing == Settings(trainer_image="i")


def edited(view: JobView, **spec: Any) -> JobView:
    """The job after a change of its spec while it was suspended, and after it is resumed."""
    return set_suspend(set_suspend(view, **spec), suspend=False)


def test_bounds_hold_again_for_resources_that_were_changed() -> None:
    view = edited(at_rest(), resources={"gpusPerNode": 8})
    held = step(view, SET)
    assert (held.status.phase, held.status.reason) == ("Suspended", "InvalidSpec")
    assert "gpusPerNode is 8, and at most 4 is allowed (bounds.gpus)" in (held.status.message or "")
    assert "correct spec.resources" in (held.status.message or "")
    view = edited(with_status(view, held), resources={"gpusPerNode": 2})
    resumed = step(view, SET)
    assert resumed.status.phase == "Preparing"
    assert resumed.status.resolved is not None
    assert resumed.status.resolved.presets is not None
    assert resumed.status.resolved.image == "registry.example/preset:1"


def test_what_cannot_be_changed_stays_granted() -> None:
    view = set_suspend(at_rest(), suspend=False)
    assert step(view, having(sources=["s3://"])).status.phase == "Starting"


def test_a_job_is_resumed_once_broken_presets_are_repaired() -> None:
    view = set_suspend(at_rest(), suspend=False)
    waits = step(view, BROKEN)
    assert (waits.status.phase, waits.status.reason, waits.step) == ("Suspended", "PresetsInvalid", None)
    assert condition(waits.status, "Accepted") == ("Unknown", "PresetsInvalid")
    assert step(with_status(view, waits), SET).status.phase == "Starting"


def test_resuming_takes_the_presets_of_today() -> None:
    before = at_rest(with_status(view := accepted(), step(view, Snapshot((child_job(),), (running(),)))))
    view = set_suspend(before, suspend=False)
    assert Read.PRESETS in needs(view)[0], "live: who tightens a bound and resumes at once is not too early"
    resumed = with_status(view, step(view, having({"nodeSelector": {"pool": "new"}})))
    assert resumed.status["resolved"]["presets"]["filled"] == {"resources": {"nodeSelector": {"pool": "new"}}}
    pod = template(step(resumed))["spec"]
    assert pod["nodeSelector"] == {"pool": "new"}
    assert pod["containers"][0]["image"] == SETTINGS.trainer_image
    without = with_status(view, step(view))
    assert "presets" not in without.status["resolved"]


def test_a_change_that_the_operator_missed_does_not_escape_the_bounds() -> None:
    """The operator was away while the job was suspended, changed and resumed."""
    view = with_status(view := accepted(), step(view, Snapshot((child_job(),), (running(),))))
    view = replace(view, spec={**view.spec, "resources": {"memory": "64Gi"}}, generation=4)
    ending = step(view, Snapshot((child_job(),), (running(),)))
    assert ending.status.reason == "Ending"
    view = with_status(view, ending)
    held = step(with_status(view, step(view)), SET)
    assert (held.status.phase, held.status.reason) == ("Suspended", "InvalidSpec")
    assert "spec.resources.memory is 64Gi" in (held.status.message or "")


def test_an_artifact_is_not_made_beyond_the_bounds() -> None:
    trained = at_rest(with_status(view := accepted(), step(view, Snapshot((child_job(),), (running(),)))))
    stops = set_suspend(trained, stop="keep", resources={"memory": "64Gi"})
    held = step(stops, SET)
    assert (held.status.phase, held.status.reason) == ("Suspended", "InvalidSpec")
    assert step(set_suspend(with_status(stops, held), resources={}), SET).status.phase == "Starting"


def test_the_time_to_live_of_the_presets_counts() -> None:
    view = accepted()
    planned = fail(view, 64)[1]
    ended = with_status(view, planned)
    assert wait(step(ended, Snapshot((child_job(failed_reason="x"),)))) == 60
    own = replace(ended, spec={**ended.spec, "ttlSecondsAfterFinished": 90})
    assert wait(step(own, Snapshot((child_job(failed_reason="x"),)))) == 90


def test_the_memory_of_gpus_is_read_of_the_nodes_that_the_presets_name() -> None:
    reading = SETTINGS.model_copy(update={"read_node_labels": True})
    need = plan(job(), replace(SET, reads=frozenset({Read.PRESETS})), NOW, reading)
    assert isinstance(need, Need)
    assert need.reads == {Read.GPU_MEMORY}
    assert need.node_selector == {"pool": "gpu"}


def test_a_wiped_status_gets_the_presets_from_the_child_job() -> None:
    created = step(accepted())
    assert isinstance(created.step, Create)
    manifest = created.step.manifests[-1]
    assert PRESETS_ANNOTATION in manifest["metadata"]["annotations"]
    terms = accepted_terms(manifest)
    assert terms is not None
    assert terms.resolved == created.status.resolved
    plain = step(begun())
    assert isinstance(plain.step, Create)
    assert "annotations" not in plain.step.manifests[-1]["metadata"]
