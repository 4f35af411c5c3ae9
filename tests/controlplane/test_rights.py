"""Each right of the operator is needed, and something tells its absence: the job's status, /readyz, or the log.

For each right of the chart there is a namespace in which the operator has all other rights. A single operator
plays a whole life in each of them at the same time. Rights in all namespaces (lists and watches) are taken from it one
after the other. The rights in its own namespace, about the Lease, are taken from operators of their own.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator.names import attempt_job
from finetune_operator.refusals import OVER_SECONDS

from tests import chart
from tests.controlplane import sweep
from tests.controlplane.lane import Lane, lane
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import Scene, stage
from tests.controlplane.test_chart import GOLDEN
from tests.kube import Kube, Object, until

Right = tuple[str, str]
"""Verb and resource."""
RULES, _, OWN_RULES = yaml.safe_load_all(GOLDEN.read_text())
"""What the chart gives the operator everywhere, and in its own namespace."""


def rights(rules: list[Object]) -> list[Right]:
    return [(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]]


WIDE: list[Right] = [
    *((verb, resource) for verb in ("list", "watch") for resource in ("finetunejobs", "jobs", "pods", "configmaps")),
    ("list", "serviceaccounts"),
    ("get", "clusterroles"),
    ("list", "roles"),
]
"""Used for all namespaces at once."""
OF_QUEUES: list[Right] = [("list", "workloads"), ("get", "localqueues/pendingworkloads")]
"""Used while Kueue keeps a job waiting (test_kueue). Without them a job only tells less."""
NARROW = [right for right in rights(RULES) if right not in (*WIDE, *OF_QUEUES)]
UNTOLD_BY_STATUS: dict[Right, str] = {
    ("patch", "finetunejobs/status"): "it is what the status is written with",
    ("operate", "finetunejobs"): "without it, the policy keeps the operator from writing status",
    ("create", "events"): "events are best effort",
    ("list", "events"): "they explain why a pod does not start, and the job waits without an explanation",
}
"""Rights whose absence is in the log alone, and why."""
WORDS: dict[Right, str] = {
    ("update", "finetunejobs/finalizers"): "cannot set blockOwnerDeletion",
    ("operate", "finetunejobs"): "status of a FineTuneJob is written by the operator",
}
"""What the API server says, if it does not name the right."""
POD: Object = {"containers": [{"name": "a", "image": "a"}], "restartPolicy": "Never"}
TAKEN: dict[Right, Object] = {
    ("get", "services"): {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 1}]}},
    ("get", "jobs"): {"apiVersion": "batch/v1", "kind": "Job", "spec": {"suspend": True, "template": {"spec": POD}}},
}
"""Objects of somebody else. The operator reads them when it meets them."""
SECONDS = 120.0
JOB = "job"


def words(right: Right) -> str:
    verb, resource = right
    return WORDS.get(right, f'cannot {verb} resource "{resource}"')


def without(rules: list[Object], right: Right) -> list[Object]:
    """The rules but for one right."""
    verb, resource = right
    left = copy.deepcopy(rules)
    for rule in left:
        if resource in rule["resources"]:
            rule["verbs"] = [other for other in rule["verbs"] if other != verb]
    return [rule for rule in left if rule["verbs"]]


def only(rules: list[Object], kept: list[Right]) -> list[Object]:
    for right in rights(rules):
        rules = rules if right in kept else without(rules, right)
    return rules


def grant(kube: Kube, namespace: str, rules: list[Object]) -> None:
    """Give the operator rights in a namespace."""
    rbac, meta = "rbac.authorization.k8s.io", {"name": "operator"}
    subject = {"kind": "ServiceAccount", "name": chart.RELEASE, "namespace": chart.NAMESPACE}
    role = {"apiGroup": rbac, "kind": "Role", "name": "operator"}
    kube.apply({"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta, "rules": rules}, namespace)
    binding = {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": meta, "roleRef": role}
    kube.apply({**binding, "subjects": [subject]}, namespace)


def grant_everywhere(kube: Kube, rules: list[Object]) -> None:
    kube.patch("ClusterRole", chart.RELEASE, {"rules": rules})


@dataclass
class Life:
    """A job of an operator that lacks a right."""

    right: Right | None
    scene: Scene
    seen: set[str] = field(default_factory=set)
    """Each status that it had."""

    def begin(self) -> None:
        """On two nodes, with a claim, and without children after its end: it needs every kind of object."""
        changes = {"resources": {"nodes": 2}, "workspace": sweep.CLAIM, "ttlSecondsAfterFinished": 0}
        uid = self.scene.submit(JOB, **changes)["metadata"]["uid"]
        if self.right in TAKEN:  # it is read when another object has its name
            taken = {**TAKEN[self.right], "metadata": {"name": attempt_job("train", JOB, uid, 1)}}
            self.scene.kube.create(taken, self.scene.namespace)

    def play(self) -> None:
        """What the kubelet does next."""
        status = sweep.status_of(self.scene, JOB)
        self.seen.add(json.dumps(status))
        if self.right != ("list", "events"):
            sweep.go_on(self.scene, JOB, sweep.SUCCESS, status)
        elif status.get("reason") == "Fetching" or not any("Creating" in seen for seen in self.seen):
            for pod in self.scene.kubelet.pods(JOB, 1, "prepare"):
                self.scene.kubelet.hold(pod, "ContainerCreating", "")

    def told(self, log: str) -> bool:
        """Whether the absence can be read where it has to be."""
        assert self.right is not None
        if self.right in UNTOLD_BY_STATUS:
            return any(words(self.right) in line and self.scene.namespace in line for line in log.splitlines())
        return any(json.dumps(words(self.right))[1:-1] in status for status in self.seen)

    def done(self) -> bool:
        """Whether the job has ended, and nothing of it is left to delete."""
        return any('"childrenDeletedTime"' in status for status in self.seen)


@dataclass
class Lives:
    """All of them, and the operator."""

    lane: Lane
    by_right: dict[Right | None, Life]
    kube: Kube

    def play(self) -> None:
        """Until every absence can be read, and the life with all rights has ended."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.missing():
            for life in self.missing():
                life.play()
            time.sleep(0.2)

    def missing(self) -> list[Life]:
        log = self.lane.operator.said()
        return [life for life in self.by_right.values() if not (life.told(log) if life.right else life.done())]


@pytest.fixture(scope="module")
def lives(
    kube: Kube, deployed: dict[str, str], example: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lives]:
    """Played to their end."""
    manifest = yaml.safe_load(example.read_text())
    numbers = itertools.count()
    with ExitStack() as stack:
        stack.callback(grant_everywhere, kube, RULES)
        grant_everywhere(kube, only(RULES, WIDE))
        by_right: dict[Right | None, Life] = {}
        for right in (None, *NARROW):
            meta = {"generateName": f"rights-{next(numbers)}-"}
            made = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})["metadata"]["name"]
            stack.callback(kube.delete, "Namespace", made)
            grant(kube, made, without(RULES, right) if right else RULES)
            by_right[right] = Life(right, stack.enter_context(stage(kube, made, manifest)))
        own = stack.enter_context(lane(kube, deployed, tmp_path_factory.mktemp("rights"), resync_seconds=2))
        own.operator.start()
        played = Lives(own, by_right, kube)
        for life in by_right.values():
            life.begin()
        played.play()
        yield played


def test_with_all_rights_a_job_lives_to_its_end_and_nothing_is_refused(lives: Lives) -> None:
    life = lives.by_right[None]
    assert life.done(), sorted(life.seen)[-1]
    assert "forbidden" not in "".join(life.seen)
    assert not [
        line for line in lives.lane.operator.said().splitlines() if life.scene.namespace in line and "403" in line
    ]


@pytest.mark.parametrize("right", NARROW, ids=" ".join)
def test_without_a_right_the_job_tells_which_is_missing(lives: Lives, right: Right) -> None:
    life = lives.by_right[right]
    told = life.told(lives.lane.operator.said())
    assert told, ("it lived to its end", life.seen) if life.done() else life.seen


@pytest.mark.parametrize("right", WIDE, ids=" ".join)
def test_without_a_list_or_a_watch_the_operator_tells_which_is_missing(lives: Lives, right: Right) -> None:
    operator, scene = lives.lane.operator, lives.by_right[None].scene
    if right == ("list", "serviceaccounts") and scene.kube.find("FineTuneJob", "runs", scene.namespace) is None:
        # They are listed while an attempt runs.
        scene.submit("runs", workspace=sweep.CLAIM)
        scene.preparing("runs")
    begin = operator.log.stat().st_size
    grant_everywhere(lives.kube, only(RULES, [other for other in WIDE if other != right]))
    try:
        lives.lane.proxy.cut_watches()
        assert until(f"it tells {right}", lambda: words(right) in operator.said(begin), timeout=60)
        if right[0] in ("list", "watch") and right[1] != "serviceaccounts":
            until("it is not ready, and says why", lambda: words(right) in operator.get("readyz")[1])
    finally:
        grant_everywhere(lives.kube, only(RULES, WIDE))
    if not operator.alive:
        operator.start()  # as the kubelet does
    until("it is ready again", lambda: operator.get("readyz")[0] == 200, timeout=60 + OVER_SECONDS)


@pytest.mark.parametrize("right", rights(OWN_RULES), ids=" ".join)
def test_without_a_right_in_its_own_namespace_it_is_not_ready_and_says_why(
    kube: Kube, deployed: dict[str, str], namespace: str, tmp_path: Path, right: Right
) -> None:
    rules: list[Any] = [{key: value for key, value in rule.items() if key != "resourceNames"} for rule in OWN_RULES]
    # The right to create has a rule of its own.
    grant(kube, namespace, without(rules, right))
    if right != ("create", "leases"):
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1}
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "mine"}, "spec": spec}
        kube.create(lease, namespace)
    with lane(kube, deployed, tmp_path, namespace, lease_namespace=namespace, lease_name="mine") as own:
        operator: OperatorProcess = own.operator
        operator.start(wait=False)
        until(f"it tells {right}", lambda: words(right) in operator.get("readyz")[1], timeout=60)
        assert not operator.leads()
