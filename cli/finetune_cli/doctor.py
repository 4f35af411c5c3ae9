"""Whether a cluster is fit for FineTuneJobs: what is there, what is missing, and what to do about it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from finetune_cli import paths
from finetune_cli.cluster.client import Client
from finetune_cli.cluster.errors import ApiError
from finetune_cli.problem import Exit

OLDEST = (1, 31)
GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "habana.ai/gaudi")
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune-operator.io"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"


class Finding(NamedTuple):
    """The result of a check. level: ok, note (nothing to do, or unknown) or problem."""

    level: str
    check: str
    text: str


def examine(client: Client) -> Iterator[Finding]:
    """All findings, in the order in which they matter."""
    checks: list[tuple[str, Callable[[Client], Iterator[Finding]]]] = [
        ("Kubernetes", _version),
        ("FineTuneJobs", _definition),
        ("Rights", _rights),
        ("Workspaces", _reading),
        ("Operator", _operator),
        ("GPUs", _gpus),
        ("Storage", _storage),
        ("Kueue", _kueue),
        ("Policies", _policies),
        ("Namespace", _namespace),
    ]
    for name, check in checks:
        try:
            yield from check(client)
        except ApiError as error:
            if error.code is Exit.UNREACHABLE:
                raise
            if error.code is Exit.DENIED and error.status == 403:
                yield Finding("note", name, f"You may not look at this. The API server says: {error.details}")
            else:
                yield Finding("problem", name, str(error))


def _version(client: Client) -> Iterator[Finding]:
    answer = client.get("/version")
    digits = tuple(int("".join(filter(str.isdigit, answer[part])) or 0) for part in ("major", "minor"))
    good = digits >= OLDEST
    advice = "" if good else f". finetune-operator needs {OLDEST[0]}.{OLDEST[1]} or newer: upgrade the cluster"
    yield Finding("ok" if good else "problem", "Kubernetes", f"{answer['gitVersion']}{advice}")


def _definition(client: Client) -> Iterator[Finding]:
    crd = client.find(CRD)
    if crd is None:
        text = "The cluster does not know FineTuneJobs. Install the chart finetune-operator (docs/install.md)"
        yield Finding("problem", "FineTuneJobs", text)
        return
    held = [each["type"] for each in (crd.get("status") or {}).get("conditions") or () if each["status"] == "True"]
    if "Established" in held:
        yield Finding("ok", "FineTuneJobs", "The definition is installed and served")
    else:
        yield Finding(
            "problem", "FineTuneJobs", "The definition is installed and not served yet. Look at its conditions"
        )


def _rights(client: Client) -> Iterator[Finding]:
    missing = [
        f"{verb} {resource}"
        for group, resource, verb in (
            (paths.GROUP, "finetunejobs", "create"),
            (paths.GROUP, "finetunejobs", "list"),
            ("", "pods", "list"),
            ("", "pods/log", "get"),
        )
        if not _may(client, group, resource, verb)
    ]
    if missing:
        text = f"You may not {', '.join(missing)} in namespace {client.namespace}. Ask for the role edit there"
        yield Finding("problem", "Rights", text)
    else:
        yield Finding("ok", "Rights", f"You may create jobs and read logs in namespace {client.namespace}")


def _reading(client: Client) -> Iterator[Finding]:
    asked = [("pods", verb) for verb in ("get", "list", "create", "delete")]
    asked += [("pods/exec", "get"), ("pods/exec", "create")]
    missing = [f"{verb} {resource}" for resource, verb in asked if not _may(client, "", resource, verb)]
    verbs = "fetch, report, ask and plot --full"
    if missing:
        text = f"You may not {', '.join(missing)} in namespace {client.namespace}, which {verbs} need"
        yield Finding("note", "Workspaces", text)
    else:
        yield Finding("ok", "Workspaces", f"You may read the workspaces of jobs: {verbs}")


def _may(client: Client, group: str, resource: str, verb: str) -> bool:
    name, _, part = resource.partition("/")
    asked = {"namespace": client.namespace, "group": group, "resource": name, "subresource": part, "verb": verb}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    answer = client.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def _operator(client: Client) -> Iterator[Finding]:
    selector = "app.kubernetes.io/name=finetune-operator"
    found = list(client.items("/apis/apps/v1/deployments", labelSelector=selector))
    if not found:
        yield Finding("problem", "Operator", "No operator runs. Install the chart finetune-operator (docs/install.md)")
    for deployment in found:
        where = f"{deployment['metadata']['namespace']}/{deployment['metadata']['name']}"
        ready, wanted = (deployment.get("status") or {}).get("readyReplicas", 0), deployment["spec"].get("replicas", 1)
        version = deployment["metadata"].get("labels", {}).get("app.kubernetes.io/version", "")
        text = f"{where} {version}: {ready} of {wanted} replicas are ready"
        advice = "" if ready else f". Look at its pods: kubectl -n {deployment['metadata']['namespace']} get pods"
        yield Finding("ok" if ready else "problem", "Operator", text + advice)


def _gpus(client: Client) -> Iterator[Finding]:
    counts: dict[str, tuple[int, int]] = {}
    for node in client.items(paths.core("nodes")):
        usable = not node["spec"].get("unschedulable")
        for resource in GPU_RESOURCES:
            number = int(((node.get("status") or {}).get("allocatable") or {}).get(resource, 0))
            if number and usable:
                gpus, nodes = counts.get(resource, (0, 0))
                counts[resource] = gpus + number, nodes + 1
    for resource, (gpus, nodes) in counts.items():
        yield Finding("ok", "GPUs", f"{gpus} {resource} on {nodes} node{'s'[: nodes != 1]}")
    if not counts:
        text = "No node offers a GPU. Install the device plugin of its maker, or let an autoscaler add nodes"
        yield Finding("note", "GPUs", text)


def _storage(client: Client) -> Iterator[Finding]:
    found = list(client.items("/apis/storage.k8s.io/v1/storageclasses"))
    key = "storageclass.kubernetes.io/is-default-class"
    default = [
        each["metadata"]["name"] for each in found if (each["metadata"].get("annotations") or {}).get(key) == "true"
    ]
    names = ", ".join(each["metadata"]["name"] for each in found) or "none"
    if default:
        yield Finding("ok", "Storage", f"The default storage class is {default[0]} (all: {names})")
    elif found:
        text = f"No storage class is the default (there are {names}): set workspace.claim.storageClassName in each job"
        yield Finding("note", "Storage", text)
    else:
        text = "The cluster has no storage class: create claims by hand, and name them in workspace.claimName"
        yield Finding("note", "Storage", text)


def _kueue(client: Client) -> Iterator[Finding]:
    groups = {group["name"] for group in client.get("/apis").get("groups") or ()}
    if "kueue.x-k8s.io" not in groups:
        yield Finding("note", "Kueue", "Kueue is not installed. Jobs start when nodes are free, without queues")
        return
    version = "v1beta2" if client.find("/apis/kueue.x-k8s.io/v1beta2") else "v1beta1"
    queues = list(client.items(f"/apis/kueue.x-k8s.io/{version}/namespaces/{client.namespace}/localqueues"))
    names = ", ".join(queue["metadata"]["name"] for queue in queues)
    text = f"Installed. Queues of namespace {client.namespace}: {names or 'none'}"
    yield Finding("ok" if queues else "note", "Kueue", text)


def _policies(client: Client) -> Iterator[Finding]:
    ours = [each["metadata"]["name"] for each in client.items(POLICIES) if "finetune" in each["metadata"]["name"]]
    if ours:
        yield Finding("ok", "Policies", f"The status of jobs is protected by {', '.join(sorted(ours))}")
    else:
        text = "No admission policy of the chart is there, so everybody who may write a job's status can forge it"
        yield Finding("note", "Policies", text)


def _namespace(client: Client) -> Iterator[Finding]:
    found = client.find(paths.core("namespaces", None, client.namespace))
    if found is None:
        text = f"Namespace {client.namespace} does not exist: kubectl create namespace {client.namespace}"
        yield Finding("problem", "Namespace", text)
        return
    quotas = list(client.items(paths.core("resourcequotas", client.namespace)))
    for quota in quotas:
        hard, used = (quota.get("status") or {}).get("hard") or {}, (quota.get("status") or {}).get("used") or {}
        for resource, limit in sorted(hard.items()):
            if "gpu" in resource:
                text = f"Quota {quota['metadata']['name']}: {used.get(resource, 0)} of {limit} {resource} are used"
                yield Finding("note", "Namespace", text)
    presets = client.find(paths.core("configmaps", client.namespace, "finetune-presets"))
    yield Finding("ok", "Namespace", client.namespace + (" has presets for its jobs" if presets else ""))
