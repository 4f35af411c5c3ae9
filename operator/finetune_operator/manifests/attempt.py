"""All objects of an attempt, in the order of creation. The child job comes last and is one write."""

from typing import Any

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.exit_codes import END_RULES, KILLED, EndRule, ExitCode
from finetune_api.spec import FineTuneJobSpec

from finetune_operator.manifests.access import role_binding, service_account
from finetune_operator.manifests.claim import workspace_claim
from finetune_operator.manifests.ownership import owner
from finetune_operator.manifests.pod import has_gpus, pod_count, pod_template
from finetune_operator.names import CONTAINER, LABEL_QUEUE, LABEL_QUEUE_PRIORITY, SERVICE_ACCOUNT, child_labels
from finetune_operator.settings import Settings

Manifest = dict[str, Any]


def attempt_objects(
    facts: AttemptFacts,
    spec: FineTuneJobSpec,
    resolved: ResolvedJob,
    document: str,
    image: str,
    settings: Settings,
    keep: bool = False,
) -> tuple[Manifest, ...]:
    """Identity and rights of the trainer's pods, their workspace, the Service by which they find each other, and the
    child job. `document` is the JSON that the pods receive; `resolved` is what this release understands of it. With
    `keep` the pods make the artifact of the newest checkpoint."""
    account = spec.resources.service_account_name or SERVICE_ACCOUNT
    objects: list[Manifest] = []
    if account == SERVICE_ACCOUNT:
        objects.append(service_account(facts.namespace))
    objects.append(role_binding(facts.namespace, account, settings))
    claim = workspace_claim(facts, spec)
    if claim is not None:
        objects.append(claim)
    if pod_count(facts, resolved, keep) > 1:
        objects.append(service(facts, spec))
    objects.append(attempt_job(facts, spec, resolved, document, image, settings, keep))
    return tuple(objects)


def attempt_job(
    facts: AttemptFacts,
    spec: FineTuneJobSpec,
    resolved: ResolvedJob,
    document: str,
    image: str,
    settings: Settings,
    keep: bool = False,
) -> Manifest:
    """The child job of an attempt. It never retries by itself, and remembers how it ended. In a queue it is created
    suspended, and Kueue starts it."""
    count = pod_count(facts, resolved, keep)
    queue = spec.queue if has_gpus(facts, resolved, keep) else spec.prepare.queue
    meta = _metadata(facts, spec)
    if queue:
        priority = {LABEL_QUEUE_PRIORITY: spec.queue_priority_class} if spec.queue_priority_class else {}
        meta["labels"] |= {LABEL_QUEUE: queue, **priority}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            **({"suspend": True} if queue else {}),
            "completionMode": "Indexed",
            "completions": count,
            "parallelism": count,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [_rule(rule) for rule in END_RULES if not (queue and _by_signal(rule))]},
            "template": pod_template(facts, spec, resolved, document, image, settings, keep),
        },
    }


def service(facts: AttemptFacts, spec: FineTuneJobSpec) -> Manifest:
    """Headless: gives each pod a host name that the other pods can resolve before it is ready."""
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


def _by_signal(rule: EndRule) -> bool:
    """Whether the rule is about pods that were asked to end. Kueue does that, and starts the child job again later: the
    rule would end it for good, if the pod is still there when its end is seen. Any other failure ends it all the same,
    because backoffLimit is 0."""
    return ExitCode.DISRUPTED in rule.codes or KILLED in rule.codes


def _rule(rule: EndRule) -> Manifest:
    if rule.codes:
        return {
            "action": "FailJob",
            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": sorted(int(c) for c in rule.codes)},
        }
    return {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
