"""Whatever carries the operator's labels, or is of its kind, is read object by object. Nothing in it stops the
operator or another job."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
from finetune_api.status import TRAINER_FIELDS
from finetune_operator.app import Operator
from finetune_operator.cluster import Cluster, Pages
from finetune_operator.names import attempt_job, child_labels
from finetune_operator.observer import Observer
from finetune_operator.plan import Create
from finetune_operator.reconcile import decide
from finetune_operator.views.claim import claim_view
from finetune_operator.views.job import job_view
from finetune_operator.views.metadata import Key, Raw, Unreadable
from finetune_operator.views.snapshot import Snapshot
from finetune_operator.views.status import merge_unknown, parse_status
from finetune_operator.views.unreadable import UnreadableObjects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.operator import make

EXAMPLES = settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
KEY = ("team", "demo")
INDEX = "batch.kubernetes.io/job-completion-index"
MOMENT = make.MOMENT

TEXTS = ["", "abc", "é" * 300, "2026-99-99", "2026-01-31", "-1", "0", "Unknown", "{}", "[1]"]
NUMBERS = [0, -1, 2**70]
JUNK: list[Any] = [*TEXTS, *NUMBERS, None, 1.5, True, [], ["x"], [None], {}, {"a": "b"}, [{}]]


def meta(name: str, **fields: Any) -> Raw:
    return {"name": name, "namespace": "team", "uid": f"uid-of-{name}", "resourceVersion": "7", **fields}


def finetunejob(status: Raw) -> Raw:
    spec = {**make.SPEC, "evaluation": {"splitFraction": 0.1}, "resources": {"nodes": 2, "tolerations": [{"key": "a"}]}}
    metadata = meta("demo", uid=make.UID, generation=1, creationTimestamp=MOMENT)
    return {"metadata": metadata, "spec": spec, "status": status}


def child_job() -> Raw:
    """As the API server returns it, with what it adds."""
    view = make.prepared()
    planned = make.step(make.with_status(view, make.step(view)))
    assert isinstance(planned.step, Create)
    manifest = copy.deepcopy(planned.step.manifests[-1])
    manifest["metadata"] |= meta(manifest["metadata"]["name"], creationTimestamp=MOMENT)
    condition = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 70"}
    return cast("Raw", json.loads(json.dumps({**manifest, "status": {"conditions": [condition]}})))


def pod() -> Raw:
    labels = {**child_labels("demo", "sft", "train", 1), INDEX: "0"}
    name = f"{attempt_job('train', 'demo', make.UID, 1)}-0-abcde"
    state = {"terminated": {"exitCode": 70, "finishedAt": MOMENT, "message": "{}"}}
    failed = {"terminated": {"exitCode": 1, "finishedAt": MOMENT, "reason": "Error"}}
    resources = {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}
    trainer = {"name": "trainer", "image": "i", "resources": resources}
    proxy = {"name": "proxy", "image": "i", "resources": resources}
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "DisruptionTarget", "status": "True"}]
    return {
        "metadata": meta(name, labels=labels, creationTimestamp=MOMENT),
        "spec": {
            "initContainers": [{**proxy, "name": "init"}, {**proxy, "name": "mesh", "restartPolicy": "Always"}],
            "containers": [proxy, trainer],
            "nodeName": "n",
        },
        "status": {
            "phase": "Failed",
            "conditions": conditions,
            "initContainerStatuses": [
                {"name": "init", "state": failed},
                {"name": "mesh", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": failed},
            ],
            "containerStatuses": [
                {"name": "proxy", "state": {"running": {}}, "started": True},
                {"name": "trainer", "state": state, "resources": resources},
            ],
        },
    }


def kept_pod() -> Raw:
    """The trainer has ended, and a container of others has not."""
    raw = pod()
    raw["status"] |= {"phase": "Running", "conditions": []}
    return raw


def claim() -> Raw:
    owner = {"kind": "FineTuneJob", "name": "demo", "uid": make.UID}
    labels = {"finetune-operator.io/job": "demo", "finetune-operator.io/job-uid": "earlier"}
    modes = {"accessModes": ["ReadWriteOnce"]}
    return {
        "metadata": meta("work", ownerReferences=[owner], labels=labels),
        "spec": {**modes, "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "slow"},
        "status": {**modes, "capacity": {"storage": "1Gi"}},
    }


def statuses() -> list[Raw]:
    """A job from its first status to its end."""
    prepared = make.with_status(make.prepared(), make.step(make.prepared()))
    running = make.with_status(prepared, make.step(prepared, Snapshot((make.child_job(),), (make.running(),))))
    retried, _ = make.fail(prepared, 70)
    failed, _ = make.fail(prepared, 64)
    progress = {**make.preparing_progress("Training"), "memoryBytes": 5}
    reported = {"progress": progress, "result": make.result(70).to_dict(), "checkpoint": {}}
    return [{}, prepared.status, {**running.status, **reported}, retried.status, failed.status]


def paths(value: Any, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where something can be put."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for name, part in inner for place in ((*here, name), *paths(part, (*here, name)))]


def junk(value: Any) -> list[Any]:
    """Other values of the same type: the API server checks the types of its own kinds."""
    same = [other for other in JUNK if type(other) is type(value)]
    return [other for other in same if not isinstance(other, list) or other != [None]] or [value]


@st.composite
def spoiled(draw: st.DrawFn, raws: list[Raw], *, typed: bool) -> Raw:
    """An object in which up to four values are replaced, removed or added. `typed`: only by values of their type."""
    raw = copy.deepcopy(draw(st.sampled_from(raws)))
    for _ in range(draw(st.integers(1, 4))):
        if not raw:
            break
        *path, last = draw(st.sampled_from(paths(raw)))
        where: Any = raw
        for step in path:
            where = where[step]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "remove":
            del where[last]
        elif change == "add" and isinstance(where, dict):
            where["invented"] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        else:
            where[last] = copy.deepcopy(draw(st.sampled_from(junk(where[last]) if typed else JUNK)))
    return raw


class Served:
    """An API server that has these objects and nothing else."""

    def __init__(self, raw_job: Raw, children: list[Raw], pods: list[Raw], claim: Raw | None) -> None:
        self.job, self.children, self.pods, self.claim = raw_job, children, pods, claim
        self.calls: Counter[tuple[str, int]] = Counter()

    async def list_jobs(self, _namespace: str) -> Pages:
        yield [self.job, finetunejob({}) | {"metadata": meta("other")}], 9

    async def list_child_jobs(self, _namespace: str) -> Pages:
        yield self.children, 9

    async def list_pods(self, _namespace: str) -> Pages:
        yield self.pods, 9

    async def get_presets(self, _namespace: str) -> Raw | None:
        return None

    async def list_presets(self, _namespace: str) -> Pages:
        yield [], 9

    async def get_job(self, _key: Any) -> Raw:
        return self.job

    async def get_child_job(self, *_: Any) -> Raw | None:
        return self.children[0] if self.children else None

    async def pods_of(self, *_: Any) -> list[Raw]:
        return self.pods

    async def get_claim(self, *_: Any) -> Raw | None:
        return self.claim

    async def node_labels(self, *_: Any) -> list[dict[str, str]]:
        return []


async def live(served: Served) -> tuple[Operator, set[Key]]:
    """List the objects twice and plan for every job. Only an unreadable object may be refused, and only for itself.
    Returns the operator, and the jobs that have a plan."""
    operator = Operator(make.SETTINGS, cast("Cluster", served))
    for _ in range(2):
        await operator.resync()
    observer = Observer(operator.cache, operator.cluster, operator.event_reader)
    planned: set[Key] = set()
    for key in operator.cache.job_keys():
        try:
            decision = await decide(observer, key, make.NOW, make.SETTINGS)
        except Unreadable:
            continue
        if decision is not None:
            merge_unknown(decision.view.status, decision.plan.status)
            planned.add(key)
    return operator, planned


def planned_jobs(served: Served) -> set[Key]:
    return asyncio.run(live(served))[1]


STATUSES, CHILD_JOB, POD, KEPT_POD, CLAIM = statuses(), child_job(), pod(), kept_pod(), claim()
OTHER: Key = ("team", "other")
"""A healthy job beside the strange object: it is planned as ever."""


@EXAMPLES
@given(raw=spoiled([finetunejob(status) for status in STATUSES], typed=False))
def test_a_thousand_strange_finetunejobs(raw: Raw) -> None:
    assert OTHER in planned_jobs(Served(raw, [CHILD_JOB], [POD], CLAIM))


@pytest.mark.parametrize("count", [-1, 0])
@pytest.mark.parametrize("field", ["nodes", "gpusPerNode"])
def test_counts_that_this_release_would_refuse(field: str, count: int) -> None:
    for status in STATUSES:
        raw = finetunejob(status)
        raw["spec"]["resources"][field] = count
        assert OTHER in planned_jobs(Served(raw, [CHILD_JOB], [POD], CLAIM))


def test_a_phase_that_is_too_long_for_a_reason() -> None:
    for status in STATUSES:
        raw = finetunejob({**status, "phase": "é" * 300})
        assert OTHER in planned_jobs(Served(raw, [CHILD_JOB], [POD], CLAIM))


@EXAMPLES
@given(raw=spoiled([CHILD_JOB], typed=True), status=st.sampled_from(STATUSES))
def test_a_thousand_strange_jobs(raw: Raw, status: Raw) -> None:
    assert OTHER in planned_jobs(Served(finetunejob(status), [raw], [POD], CLAIM))


@EXAMPLES
@given(raw=spoiled([POD, KEPT_POD], typed=True), status=st.sampled_from(STATUSES), finished=st.booleans())
def test_a_thousand_strange_pods(raw: Raw, status: Raw, finished: bool) -> None:
    child = CHILD_JOB if finished else {**CHILD_JOB, "status": {}}
    assert OTHER in planned_jobs(Served(finetunejob(status), [child], [raw], CLAIM))


@EXAMPLES
@given(raw=spoiled([CLAIM], typed=True), status=st.sampled_from(STATUSES))
def test_a_thousand_strange_claims(raw: Raw, status: Raw) -> None:
    unreadable = UnreadableObjects()
    unreadable.read("PersistentVolumeClaim", claim_view, raw)
    own = finetunejob(status)
    own["spec"] |= {"workspace": {"claim": {"size": "5Gi"}}, "resources": {}}
    for strange in (finetunejob(status), own):
        assert OTHER in planned_jobs(Served(strange, [], [], raw))


def test_an_unreadable_object_is_logged_and_counted_once_for_each_version(caplog: pytest.LogCaptureFixture) -> None:
    strange = pod()
    strange["metadata"]["labels"][INDEX] = "abc"

    def resync(version: str) -> int:
        strange["metadata"]["resourceVersion"] = version
        operator, _ = asyncio.run(live(Served(finetunejob({}), [], [strange, *shown], None)))
        assert operator.metrics.unreadable == {"Pod": 1}
        return len(operator.cache.pods.views)

    shown: list[Raw] = []
    assert resync("7") == 0
    [line] = caplog.messages
    assert line == (
        f"Pod team/{strange['metadata']['name']} cannot be read and is skipped: Unreadable: its label {INDEX} is 'abc',"
        " not the index of a pod (1 so far)"
    )
    shown.append(pod())
    assert resync("8") == 1, "the other pods are read"


async def test_an_object_that_becomes_readable_again_is_seen_again() -> None:
    raw = pod()
    served = Served(finetunejob({}), [], [raw], None)
    operator = Operator(make.SETTINGS, cast("Cluster", served))
    for index, version, seen in (("0", "5", 1), ("abc", "6", 0), ("0", "7", 1)):
        raw["metadata"] |= {"labels": {**raw["metadata"]["labels"], INDEX: index}, "resourceVersion": version}
        await operator.resync()
        assert len(operator.cache.pods.of(KEY)) == seen
    assert operator.lag.oldest() < 60


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phase", "Paused"),
        ("reason", "SomethingNew"),
        ("message", "m" * 5000),
        ("metrics", {"m" * 300: "1"}),
        ("metrics", {f"m{number}": "1" for number in range(50)}),
        ("attempt", 1234),
        (
            "conditions",
            [{"type": "Frozen", "status": "Half", "reason": "New", "message": "", "lastTransitionTime": MOMENT}],
        ),
        ("attempts", [{"number": 1, "job": "j", "state": "Paused", "startTime": MOMENT, "invented": {"a": 1}}]),
        ("attempts", [{"number": n, "job": "j", "state": "Ended", "startTime": MOMENT} for n in range(1, 40)]),
        ("artifact", {"uri": "u", "kind": "tokenizer", "digest": "d", "sizeBytes": 1, "invented": "x"}),
        ("invented", {"deep": [1, {"a": None}]}),
    ],
)
def test_what_a_newer_release_wrote_into_our_part_is_written_back_as_it_is(field: str, value: Any) -> None:
    status = {**make.prepared().status, field: value}
    written = merge_unknown(status, parse_status(status))
    if field == "conditions":
        assert written[field] == value
    else:
        assert _contains(written[field], value)


def test_unknown_conditions_stay_beside_those_that_are_set() -> None:
    frozen = {"type": "Frozen", "status": "True", "reason": "New", "message": "", "lastTransitionTime": MOMENT}
    planned = make.step(make.job({"conditions": [frozen], "phase": "Paused"}))
    conditions = planned.status.to_dict()["conditions"]
    assert conditions[-1] == frozen
    assert {"Accepted", "Prepared"} <= {condition["type"] for condition in conditions}


@pytest.mark.parametrize("field", TRAINER_FIELDS)
def test_what_a_trainer_wrote_is_no_reason_to_stop(field: str) -> None:
    status = {"phase": "Running", field: {"invented": True}}
    assert parse_status(status).to_dict() == {"phase": "Running"}
    progress = {**make.preparing_progress("Pondering"), "percent": 4711}
    read = parse_status({"progress": progress}).progress
    assert read is not None
    assert (read.activity, read.percent) == ("Pondering", 4711)


def test_a_view_is_made_of_any_spec() -> None:
    read: Callable[[Raw], Any] = job_view
    for spec in ({"model": "new", "stage": 5, "sft": []}, {"workspace": [], "model": {"fromJob": 7}}):
        view = read({"metadata": meta("demo"), "spec": spec, "status": {"progress": 5, "phase": "Running"}})
        assert (view.claim, view.summary.tenths) == ("demo-workspace", 0)
        assert view.dependencies <= {"7"}


def _contains(actual: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return all(_contains(actual.get(name), value) for name, value in expected.items())
    if isinstance(expected, list):
        return len(actual) == len(expected) and all(map(_contains, actual, expected))
    return bool(actual == expected)


def test_a_text_in_place_of_a_number_is_no_progress() -> None:
    """pydantic converts it before it checks the bounds, so the value breaks both."""
    progress = {**make.preparing_progress("Training"), "step": "-1"}
    assert parse_status({"phase": "Running", "progress": progress}).progress is None
