"""`finetune estimate --in-cluster`: the pod, what is sent to it, and that nothing of it stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.training import TrainingSpec
from finetune_cli import estimates
from finetune_cli.cluster.client import Client
from finetune_cli.problem import Exit, Problem
from finetune_cli.workspace import estimate, waiting

from tests.unit.cli.workspace_server import Cluster, served

IMAGE = "registry/trainer:1"
ROWS = [{"method": "lora", "gpus": 1, "parallelism": "ddp", "bytes": 2**30}]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PAUSE_SECONDS", 0.001)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with served(cluster) as found:
        yield found


def job(name: str, **spec: Any) -> Any:
    """A job that does not exist yet, or that of a chain."""
    return {
        "metadata": {"name": name, "namespace": "team", "creationTimestamp": f"2026-01-31T12:00:0{len(name)}Z"},
        "spec": {"stage": "sft", "model": {"source": "pvc://models/base"}, **spec},
    }


def accepted(name: str, image: str, **spec: Any) -> Any:
    return {**job(name, **spec), "status": {"resolved": {"image": image}}}


def test_a_pod_estimates_and_is_removed(cluster: Cluster, client: Client) -> None:
    sent: list[Any] = []

    def talk(line: str) -> list[str]:
        sent.append(json.loads(line))
        return ["a library says something", json.dumps(ROWS)]

    cluster.talk = talk
    asked = job("new", model={"fromJob": "last"}, tuning={"adapter": {"mode": "continue"}})
    every = [job("last", model={"fromJob": "first"}), job("first")]
    assert estimate.in_cluster(client, asked, every, (1, 4), IMAGE, 5) == ROWS
    (command,) = cluster.commands
    assert command[-4:] == ["--gpus", "1", "--gpus", "4"]
    assert [each["spec"]["model"] for each in sent] == [{"source": "pvc://models/base"}]
    assert sent[0]["spec"]["tuning"] == {}, "an adapter that is continued needs the workspace"
    assert asked["spec"]["model"] == {"fromJob": "last"}, "the job of the caller stays as it is"
    assert cluster.deleted == [cluster.created[0]["metadata"]["name"]]


def test_the_pod_reaches_what_the_operators_pods_reach_and_reads_no_workspace(cluster: Cluster, client: Client) -> None:
    ways = [{"name": "HF_ENDPOINT", "value": "http://mirror"}, {"name": "FINETUNE_IMAGE", "value": "x"}]
    mount = {"name": "finetune-ca", "mountPath": "/ca", "readOnly": True}
    authority = {"name": "finetune-ca", "configMap": {"name": "authority"}}
    cluster.pods["train"] = {
        "metadata": {"name": "train", "labels": {"finetune-operator.io/managed": "true"}},
        "spec": {
            "containers": [{"name": "trainer", "env": ways, "volumeMounts": [mount]}],
            "volumes": [authority],
            "imagePullSecrets": [{"name": "pull"}],
        },
    }
    own = [{"name": "AWS_REGION", "value": "eu"}, {"name": "KEY", "secretKeyRef": {"name": "mine", "key": "k"}}]
    asked = job("new", secrets={"huggingFace": "hub", "s3": "bucket"}, resources={"env": own})
    made = estimate.pod_of(client, asked, IMAGE)
    spec, (container,) = made["spec"], made["spec"]["containers"]
    assert (container["image"], spec["imagePullSecrets"]) == (IMAGE, [{"name": "pull"}])
    assert made["metadata"]["ownerReferences"] == []
    assert (spec["automountServiceAccountToken"], spec["securityContext"]["runAsNonRoot"]) == (False, True)
    environment = {each["name"]: each for each in container["env"]}
    assert environment["HF_ENDPOINT"]["value"] == "http://mirror"
    assert not {"FINETUNE_IMAGE", "HF_HUB_OFFLINE"} & environment.keys()
    assert environment["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}
    assert environment["AWS_ENDPOINT_URL"]["valueFrom"]["secretKeyRef"]["optional"] is True
    assert environment["AWS_REGION"] == own[0], "what the job sets comes last, so it wins"
    assert environment["KEY"] == {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "k"}}}
    assert {"HF_TOKEN", "KEY"} <= set(environment["FINETUNE_SECRET_VARIABLES"]["value"].split(","))
    places = {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}
    assert places == {"/tmp": False, "/volumes/models": True, "/ca": True}
    assert authority in spec["volumes"]


def test_a_claim_that_is_missing_is_named_before_a_pod_waits_for_it(cluster: Cluster, client: Client) -> None:
    cluster.claim = None
    with pytest.raises(Problem, match="no claim models in namespace team"):
        estimate.in_cluster(client, job("new"), [], (1,), IMAGE, 5)
    assert cluster.created == []


def test_what_the_trainer_says_about_a_failure_reaches_the_user(cluster: Cluster, client: Client) -> None:
    cluster.ends_with = (69, "SourceUnreachable: hf://org/name: the hub is unreachable")
    with pytest.raises(Problem, match="the hub is unreachable"):
        estimate.in_cluster(client, job("new"), [], (1,), IMAGE, 5)
    cluster.ends_with = (64, "usage: python -m finetune_trainer\nrequired: --model")
    with pytest.raises(Problem, match="earlier release"):
        estimate.in_cluster(client, job("new"), [], (1,), IMAGE, 5)
    assert cluster.pods == {}


def test_a_missing_right_is_named_with_the_rights_that_are_needed(cluster: Cluster, client: Client) -> None:
    cluster.refused = {"create pods"}
    with pytest.raises(Problem, match=r"(?s)create.*pods/exec") as refused:
        estimate.in_cluster(client, job("new"), [], (1,), IMAGE, 5)
    assert refused.value.code is Exit.DENIED


def test_the_image_is_that_of_the_job_else_of_the_release_else_of_the_newest_job_without_its_own() -> None:
    every = [accepted("a", "old"), accepted("bb", "newer"), accepted("ccc", "own", resources={"image": "own"})]
    assert estimate.image_for(job("new", resources={"image": "mine"}), every, "release") == "mine"
    assert estimate.image_for(job("new"), every, "release") == "release"
    assert estimate.image_for(job("new"), every) == "newer"
    with pytest.raises(Problem, match=r"spec\.resources\.image"):
        estimate.image_for(job("new"), every[2:])


def test_a_field_that_decides_no_memory_is_a_field_of_the_api() -> None:
    """A field that was renamed would count as one that decides, and hide what is known."""
    assert {field.alias for field in TrainingSpec.model_fields.values()} >= estimates.HARMLESS


@pytest.mark.parametrize("every", [[], [job("a", model={"fromJob": "b"}), job("b", model={"fromJob": "a"})]])
def test_a_chain_without_a_beginning_is_refused(every: list[Any]) -> None:
    with pytest.raises(Problem, match="There is no job"):
        estimate.alone(job("new", model={"fromJob": "a"}), every)
