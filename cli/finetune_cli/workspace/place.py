"""Where a workspace can be read: whether its claim exists, which node has it mounted, and how to pull the image."""

from typing import Any

from finetune_cli import jobs, paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.cluster.errors import ApiError
from finetune_cli.problem import Exit, Problem
from finetune_cli.workspace.pod import Place, claim_of, model_claims

ON_ANY_NODE = {"ReadWriteMany", "ReadOnlyMany"}
ALIVE = "status.phase!=Succeeded,status.phase!=Failed"


def find(client: Client, job: Object) -> Place:
    """The place for a pod that reads the workspace. Raises Problem if the workspace no longer exists."""
    claim = claim_of(job)
    return Place(claim, _where(client, job, claim, _claim(client, job, claim)), _pull_secrets(client, job))


def of_models(client: Client, job: Object) -> Place:
    """The place for a pod that reads the models of a job that does not exist yet. Raises Problem for a claim that does
    not exist."""
    nodes = []
    for claim in model_claims(job):
        found = _found(client, job, claim)
        if found is None:
            raise Problem(f"There is no claim {claim} in namespace {job['metadata']['namespace']}.", Exit.NOT_FOUND)
        nodes.append(_where(client, job, claim, found))
    return Place(None, next((node for node in nodes if node), None))


def _where(client: Client, job: Object, claim: str, found: Object) -> str | None:
    """The node that has the claim mounted, if no other can."""
    modes = set((found.get("status") or {}).get("accessModes") or (found.get("spec") or {}).get("accessModes") or ())
    return None if modes & ON_ANY_NODE else _node(client, job["metadata"]["namespace"], claim)


def _found(client: Client, job: Object, claim: str) -> Object | None:
    try:
        return client.find(paths.core("persistentvolumeclaims", job["metadata"]["namespace"], claim))
    except ApiError as error:
        if error.status != 403:
            raise
        return {}  # without this right, the scheduler finds out


def _claim(client: Client, job: Object, claim: str) -> Object:
    found = _found(client, job, claim)
    if found is None:
        copy = (jobs.status(job).get("artifact") or {}).get("published")
        hint = f" A copy of the artifact is at {copy}." if copy else ""
        raise Problem(
            f"The workspace of {job['metadata']['name']} no longer exists: there is no claim {claim}.{hint}",
            Exit.NOT_FOUND,
        )
    return found


def _node(client: Client, namespace: str, claim: str) -> str | None:
    """A node with a pod that uses the claim. A claim of one node cannot be mounted on another until that pod ends."""
    for pod in client.items(paths.pods(namespace), fieldSelector=ALIVE):
        node = pod["spec"].get("nodeName")
        if node and claim in _claims(pod):
            return str(node)
    return None


def _claims(pod: Object) -> set[str]:
    volumes: list[dict[str, Any]] = pod["spec"].get("volumes") or []
    return {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}


def _pull_secrets(client: Client, job: Object) -> tuple[str, ...]:
    """Those of the newest pod of the job: it has those of the installation too, which the job does not name."""
    meta = job["metadata"]
    found = list(client.items(paths.pods(meta["namespace"]), labelSelector=f"{paths.LABEL_JOB}={meta['name']}"))
    newest = max(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)
    secrets = newest["spec"].get("imagePullSecrets") if newest else None
    return tuple(secret["name"] for secret in secrets or ())
