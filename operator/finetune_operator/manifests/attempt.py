"""Everything that one attempt needs, in the order in which it is made; the Job comes last and is one write."""

from typing import Any

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.spec import FineTuneJobSpec

from finetune_operator.exit_classes import ROWS, Row
from finetune_operator.manifests.access import role_binding, service_account
from finetune_operator.manifests.claim import workspace_claim
from finetune_operator.manifests.ownership import owner
from finetune_operator.manifests.pod import pod_template
from finetune_operator.names import CONTAINER, SERVICE_ACCOUNT, child_labels
from finetune_operator.settings import Settings

Manifest = dict[str, Any]
Child = Manifest


def children(
    facts: AttemptFacts, spec: FineTuneJobSpec, resolved: ResolvedJob, image: str, settings: Settings
) -> tuple[Child, ...]:
    """What the trainer's pods run as and may do, where they keep what they make, the names they find each other by, and
    the Job."""
    account = spec.resources.service_account_name or SERVICE_ACCOUNT
    out: list[Child] = []
    if account == SERVICE_ACCOUNT:
        out.append(service_account(facts.namespace))
    out.append(role_binding(facts.namespace, account, settings.trainer_cluster_role))
    claim = workspace_claim(facts, spec)
    if claim is not None:
        out.append(claim)
    if pods(facts, resolved) > 1:
        out.append(service(facts, spec))
    out.append(attempt_job(facts, spec, resolved, image, settings))
    return tuple(out)


def pods(facts: AttemptFacts, resolved: ResolvedJob) -> int:
    """How many an attempt has: one a node, and one to prepare."""
    return resolved.runtime.nodes if facts.kind == "train" else 1


def attempt_job(
    facts: AttemptFacts, spec: FineTuneJobSpec, resolved: ResolvedJob, image: str, settings: Settings
) -> Manifest:
    """The Job of one attempt: it never retries by itself, and remembers how it ended."""
    number = pods(facts, resolved)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(facts, spec),
        "spec": {
            "completionMode": "Indexed",
            "completions": number,
            "parallelism": number,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [_rule(row) for row in ROWS]},
            "template": pod_template(facts, spec, resolved, image, settings),
        },
    }


def service(facts: AttemptFacts, spec: FineTuneJobSpec) -> Manifest:
    """Headless: gives each pod a host name that the others find, before it is ready."""
    labels = child_labels(facts.name, spec.stage, facts.kind, facts.attempt)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(facts, spec),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": facts.job_name, **labels},
        },
    }


def _metadata(facts: AttemptFacts, spec: FineTuneJobSpec) -> Manifest:
    return {
        "name": facts.job_name,
        "namespace": facts.namespace,
        "labels": child_labels(facts.name, spec.stage, facts.kind, facts.attempt),
        "ownerReferences": [owner(facts)],
    }


def _rule(row: Row) -> Manifest:
    if row.codes:
        return {
            "action": "FailJob",
            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": sorted(int(c) for c in row.codes)},
        }
    return {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
