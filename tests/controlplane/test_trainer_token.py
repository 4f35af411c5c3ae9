"""The token of a training pod writes progress, checkpoint and result of the pod's own attempt, and does nothing else.

The token is real and bound to a real pod, as the token that the kubelet mounts. Every attack is a request that an
administrator could make, so it is refused for who makes it and not for how it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import chart
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import FTJ, Scene, claim, stage
from tests.kube import ApiError, Kube, Object, until

CORE, BATCH, RBAC = "api/v1", "apis/batch/v1", "apis/rbac.authorization.k8s.io/v1"
OURS = "apis/finetune-operator.io/v1alpha1"
ADMISSION = "apis/admissionregistration.k8s.io/v1"
ACCOUNT = "finetune-trainer"
META = {"name": "stolen"}
CONTAINER = {
    "name": "a",
    "image": "a",
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
POD = {"containers": [CONTAINER], "serviceAccountName": ACCOUNT}
ROLE = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
MINE = [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "{own}"}]
EVERYBODY = {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:authenticated"}
TOKEN_REQUEST = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
EXEC = "exec?command=sh&container=trainer&stdin=true&stdout=true"
PROGRESS = {
    "progress": {
        "attempt": 1,
        "kind": "train",
        "step": 40,
        "totalSteps": 80,
        "percent": 50,
        "summary": "40/80 (50%)",
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }
}
RESULT = {"result": {"kind": "train", "attempt": 1, "exitCode": 65, "reason": "InvalidData", "message": "not yours"}}

Attack = tuple[str, str, Any]
"""Method, path and body. {own}, {other} and {system} are namespaces, {pod} is the thief's own pod, {job} its Job."""


def read(plural: str, prefix: str = CORE) -> dict[str, Attack]:
    """Look at a kind: an object, all of the namespace, all of the cluster, and as they change."""
    place = f"{prefix}/namespaces/{{own}}/{plural}"
    return {
        f"list {plural}": ("GET", place, None),
        f"list {plural} of another namespace": ("GET", f"{prefix}/namespaces/{{other}}/{plural}", None),
        f"list {plural} of the operator": ("GET", f"{prefix}/namespaces/{{system}}/{plural}", None),
        f"list all {plural}": ("GET", f"{prefix}/{plural}", None),
        f"watch {plural}": ("GET", f"{place}?watch=true&timeoutSeconds=1", None),
        f"delete all {plural}": ("DELETE", place, {}),
    }


ATTACKS: dict[str, Attack] = {
    **read("secrets"),
    **read("configmaps"),
    **read("pods"),
    **read("persistentvolumeclaims"),
    **read("serviceaccounts"),
    **read("services"),
    **read("finetunejobs", OURS),
    **read("jobs", BATCH),
    **read("rolebindings", RBAC),
    "list nodes": ("GET", f"{CORE}/nodes", None),
    "list namespaces": ("GET", f"{CORE}/namespaces", None),
    "read its own FineTuneJob": ("GET", f"{OURS}/namespaces/{{own}}/finetunejobs/job", None),
    "read its own status": ("GET", f"{OURS}/namespaces/{{own}}/finetunejobs/job/status", None),
    "read its own pod": ("GET", f"{CORE}/namespaces/{{own}}/pods/{{pod}}", None),
    "read its own log": ("GET", f"{CORE}/namespaces/{{own}}/pods/{{pod}}/log", None),
    "run a program in a pod": ("POST", f"{CORE}/namespaces/{{own}}/pods/{{pod}}/{EXEC}", None),
    "forward a port of a pod": ("POST", f"{CORE}/namespaces/{{own}}/pods/{{pod}}/portforward?ports=1", None),
    "evict a pod": (
        "POST",
        f"{CORE}/namespaces/{{own}}/pods/{{pod}}/eviction",
        {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "{pod}"}},
    ),
    "add a container to a pod": (
        "PATCH",
        f"{CORE}/namespaces/{{own}}/pods/{{pod}}/ephemeralcontainers",
        {"spec": {"ephemeralContainers": [{**CONTAINER, "name": "debug"}]}},
    ),
    "end its pod as a kubelet would": (
        "PATCH",
        f"{CORE}/namespaces/{{own}}/pods/{{pod}}/status",
        {"status": {"phase": "Succeeded"}},
    ),
    "delete its own pod": ("DELETE", f"{CORE}/namespaces/{{own}}/pods/{{pod}}", {}),
    "create a pod": ("POST", f"{CORE}/namespaces/{{own}}/pods", {"metadata": META, "spec": POD}),
    "create a Job": (
        "POST",
        f"{BATCH}/namespaces/{{own}}/jobs",
        {"metadata": META, "spec": {"template": {"spec": {**POD, "restartPolicy": "Never"}}}},
    ),
    "delete its own Job": ("DELETE", f"{BATCH}/namespaces/{{own}}/jobs/{{job}}", {}),
    "suspend its own Job": ("PATCH", f"{BATCH}/namespaces/{{own}}/jobs/{{job}}", {"spec": {"suspend": True}}),
    "create a Secret": ("POST", f"{CORE}/namespaces/{{own}}/secrets", {"metadata": META, "type": "Opaque"}),
    "create a FineTuneJob": ("POST", f"{OURS}/namespaces/{{own}}/finetunejobs", "{finetunejob}"),
    "create a FineTuneJob elsewhere": ("POST", f"{OURS}/namespaces/{{other}}/finetunejobs", "{finetunejob}"),
    "change its own spec": ("PATCH", f"{OURS}/namespaces/{{own}}/finetunejobs/job", {"spec": {"retry": 3}}),
    "delete its own FineTuneJob": ("DELETE", f"{OURS}/namespaces/{{own}}/finetunejobs/job", {}),
    "replace its own status": ("PUT", f"{OURS}/namespaces/{{own}}/finetunejobs/job/status", "{stored}"),
    "write the status of a namesake elsewhere": (
        "PATCH",
        f"{OURS}/namespaces/{{other}}/finetunejobs/job/status",
        {"status": PROGRESS},
    ),
    "bind itself to a stronger role": (
        "PATCH",
        f"{RBAC}/namespaces/{{own}}/rolebindings/{ACCOUNT}",
        {
            "subjects": [
                *MINE,
                {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:authenticated"},
            ]
        },
    ),
    "create a RoleBinding": (
        "POST",
        f"{RBAC}/namespaces/{{own}}/rolebindings",
        {"metadata": META, "roleRef": ROLE, "subjects": MINE},
    ),
    "create a ClusterRoleBinding": (
        "POST",
        f"{RBAC}/clusterrolebindings",
        {"metadata": META, "roleRef": ROLE, "subjects": MINE},
    ),
    "widen its own role": (
        "PATCH",
        f"{RBAC}/clusterroles/{ACCOUNT}",
        {"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]},
    ),
    "change its own account": (
        "PATCH",
        f"{CORE}/namespaces/{{own}}/serviceaccounts/{ACCOUNT}",
        {"imagePullSecrets": [{"name": "registry"}]},
    ),
    "ask for another token of its account": (
        "POST",
        f"{CORE}/namespaces/{{own}}/serviceaccounts/{ACCOUNT}/token",
        TOKEN_REQUEST,
    ),
    "ask for a token of the operator": (
        "POST",
        f"{CORE}/namespaces/{{system}}/serviceaccounts/{chart.RELEASE}/token",
        TOKEN_REQUEST,
    ),
    "take the operator's Lease": (
        "PATCH",
        f"apis/coordination.k8s.io/v1/namespaces/{{system}}/leases/{chart.RELEASE}",
        {"spec": {"holderIdentity": "me"}},
    ),
    "remove the status policy": (
        "DELETE",
        f"{ADMISSION}/validatingadmissionpolicybindings/{chart.RELEASE}-status",
        {},
    ),
    "loosen the status policy": (
        "PATCH",
        f"{ADMISSION}/validatingadmissionpolicies/{chart.RELEASE}-status",
        {"spec": {"failurePolicy": "Ignore"}},
    ),
    "change the FineTuneJob's definition": (
        "PATCH",
        "apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune-operator.io",
        {"metadata": {"labels": {"a": "b"}}},
    ),
    "write an Event": (
        "POST",
        f"{CORE}/namespaces/{{own}}/events",
        {"metadata": META, "involvedObject": {"kind": FTJ, "name": "job", "namespace": "{own}"}, "reason": "Lies"},
    ),
}
POLICED: dict[str, Object] = {
    "its own phase": {"phase": "Succeeded"},
    "its own conditions": {
        "conditions": [
            {
                "type": "Succeeded",
                "status": "True",
                "reason": "Completed",
                "message": "",
                "lastTransitionTime": "2026-01-31T12:00:00Z",
            }
        ]
    },
    "its own attempts": {"attempt": 7},
    "its own artifact": {"artifact": {"uri": "pvc://a/b", "kind": "model", "digest": "sha256:0", "sizeBytes": 1}},
    "the image of later attempts": {"resolved": {"image": "mine", "contract": 1, "digest": "a", "job": "a"}},
}
"""Parts of its own job's status that are the operator's."""


@dataclass(frozen=True)
class Theft:
    """A stolen token, and what it is tried on."""

    thief: Kube
    scene: Scene
    names: dict[str, Any]

    def filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.filled(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self.filled(part) for part in value]
        if not isinstance(value, str):
            return value
        if value == "{finetunejob}":
            return self.names["finetunejob"]
        if value == "{stored}":
            stored = self.scene.job()
            return {**stored, "status": {**stored["status"], "phase": "Succeeded"}}
        for name in ("own", "other", "system", "pod", "job"):
            value = value.replace(f"{{{name}}}", self.names[name])
        return value

    def call(self, kube: Kube, attack: Attack, *, dry_run: bool = False) -> Any:
        method, path, body = attack
        query = {"dryRun": "All"} if dry_run and method != "GET" else {}
        if query and method == "DELETE":  # a body takes the place of the query
            body = {"dryRun": ["All"]}
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        place, _, asked = self.filled(path).partition("?")
        asked = dict(part.split("=") for part in asked.split("&")) if asked else {}
        if dry_run:
            asked.pop("watch", None)  # an answer that does not end
        return kube.call(method, place, self.filled(body), kind, **asked, **query)

    def write(self, status: Object, name: str = "job") -> Object:
        """As the trainer does it."""
        meta = self.scene.job(name)["metadata"]
        head = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": FTJ}
        object_ = {**head, "metadata": {key: meta[key] for key in ("name", "namespace", "uid")}, "status": status}
        return self.thief.apply(object_, manager="finetune-trainer", part="status")


def with_token_of(kube: Kube, pod: Object, path: Path) -> Kube:
    """A client with the token that the kubelet would mount into the pod, and with no certificate."""
    meta, account = pod["metadata"], pod["spec"]["serviceAccountName"]
    bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    asked = {**TOKEN_REQUEST, "spec": {"expirationSeconds": 3600, "boundObjectRef": bound}}
    place = f"{CORE}/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
    token = kube.call("POST", place, asked)["status"]["token"]
    admin = yaml.safe_load(kube.kubeconfig.read_text())
    path.write_text(json.dumps({**admin, "users": [{**user, "user": {}} for user in admin["users"]]}))
    return Kube(path, {"Authorization": f"Bearer {token}"})


@pytest.fixture(scope="module")
def theft(
    kube: Kube, example: Path, shared_operator: OperatorProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Theft]:
    """A job that trains beside another job, and a namesake of it in another namespace; its token is stolen."""
    manifest = yaml.safe_load(example.read_text())
    with ExitStack() as stack:
        scenes = []
        for _ in range(2):
            name = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "theft-"}})[
                "metadata"
            ]["name"]
            stack.callback(kube.delete, "Namespace", name)
            scenes.append(stack.enter_context(stage(kube, name, manifest)))
        own, other = scenes
        kube.create(claim(), own.namespace)
        for scene, name in ((own, "job"), (own, "neighbour"), (other, "job")):
            scene.submit(name)
        pod = own.running()
        own.running("neighbour")
        other.running()
        names = {
            "own": own.namespace,
            "other": other.namespace,
            "system": chart.NAMESPACE,
            "pod": pod["metadata"]["name"],
            "job": own.batches()[0]["metadata"]["name"],
            "finetunejob": {**manifest, "metadata": META},
        }
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": chart.RELEASE},
            "spec": {},
        }
        kube.apply(lease, chart.NAMESPACE)
        stack.callback(kube.delete, "Lease", chart.RELEASE, chart.NAMESPACE)
        thief = with_token_of(kube, pod, tmp_path_factory.mktemp("thief") / "kubeconfig")
        yield Theft(thief, own, names)


def test_the_token_works(theft: Theft) -> None:
    """Else every attack below would be refused for want of a valid token."""
    assert theft.write(PROGRESS)["status"]["progress"]["step"] == 40


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_refused(theft: Theft, attack: str) -> None:
    with pytest.raises(ApiError) as refused:
        theft.call(theft.thief, ATTACKS[attack])
    assert refused.value.code == 403, refused.value
    assert f"system:serviceaccount:{theft.scene.namespace}:{ACCOUNT}" in refused.value.message


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_administrator_could_do_it(theft: Theft, attack: str) -> None:
    """The request is well formed. No kubelet runs here, so what a kubelet answers is an error of another kind."""
    _, path, _ = ATTACKS[attack]
    answer = None
    try:
        theft.call(theft.scene.kube, ATTACKS[attack], dry_run=True)
    except ApiError as error:
        answer = error
    if any(f"/{{pod}}/{part}" in path for part in ("exec", "portforward", "log")):
        assert answer is not None
        assert answer.code not in (403, 404, 405)
    else:
        assert answer is None


@pytest.mark.parametrize("part", POLICED)
def test_a_part_of_its_own_status_that_is_the_operators(theft: Theft, part: str) -> None:
    before = theft.scene.status()
    with pytest.raises(ApiError, match="and nothing else of status"):
        theft.write({**PROGRESS, **POLICED[part]})
    assert theft.scene.status() == before


@pytest.mark.parametrize("status", [PROGRESS, RESULT], ids=["progress", "result"])
def test_the_status_of_another_job_in_its_namespace(theft: Theft, status: Object) -> None:
    with pytest.raises(ApiError, match="is not the current attempt of FineTuneJob neighbour"):
        theft.write(status, "neighbour")


@pytest.mark.parametrize(
    "headers",
    [
        {"Impersonate-User": "system:admin", "Impersonate-Group": "system:masters"},
        {"Impersonate-User": f"system:serviceaccount:{chart.NAMESPACE}:{chart.RELEASE}"},
        {"Impersonate-Uid": "1", "Impersonate-User": "somebody"},
        {"Impersonate-User": "somebody", "Impersonate-Extra-authentication.kubernetes.io%2Fpod-name": "neighbour-1"},
    ],
    ids=["admin", "operator", "uid", "pod"],
)
def test_nobody_else_may_be_impersonated(theft: Theft, headers: dict[str, str]) -> None:
    with pytest.raises(ApiError, match="cannot impersonate") as refused:
        theft.thief.with_headers(headers).list("Secret", theft.scene.namespace)
    assert refused.value.code == 403


def test_the_api_server_lists_one_right(theft: Theft) -> None:
    """The attacks above are examples. This is the whole list: one right of ours, and what every account may ask about
    itself."""
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "metadata": {}}
    for namespace, ours in ((theft.scene.namespace, ["patch finetunejobs/status"]), (theft.names["other"], [])):
        asked = {**review, "spec": {"namespace": namespace}}
        rules = theft.thief.call("POST", "apis/authorization.k8s.io/v1/selfsubjectrulesreviews", asked)["status"]
        listed = [(rule["verbs"], rule["resources"]) for rule in rules["resourceRules"]]
        granted = [f"{verb} {resource}" for verbs, resources in listed for resource in resources for verb in verbs]
        assert not rules["incomplete"]
        assert [right for right in granted if "selfsubject" not in right] == ours
        assert all(rule["verbs"] == ["get"] for rule in rules["nonResourceRules"])


def test_the_token_ends_with_its_pod(theft: Theft) -> None:
    """Last of all: what was copied out of a pod is of no use when the pod is gone."""
    kubelet = theft.scene.kubelet
    [pod] = kubelet.pods("job", 1)
    kubelet.finish(pod, 1)
    kubelet.remove(pod)

    def refused() -> bool:
        try:
            theft.write(PROGRESS)
        except ApiError as error:
            return error.code == 401
        return False

    assert until("the token is refused", refused, timeout=60)
