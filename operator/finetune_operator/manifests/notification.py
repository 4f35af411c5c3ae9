"""The Job that tells a webhook how a FineTuneJob ended. The operator itself opens no address that a user wrote.

It is a Job of ours in the user's namespace: restricted, without a token, without GPUs and without the user's image.
Only its kubelet reads the Secret.
"""

import json
from typing import Any

from finetune_api.contract import AttemptFacts
from finetune_api.output import NotifySpec
from finetune_api.status import FineTuneJobStatus

from finetune_operator.manifests import outbound
from finetune_operator.manifests.ownership import owner
from finetune_operator.manifests.pod import USER
from finetune_operator.names import CONTAINER, job_labels
from finetune_operator.settings import Settings

LONGEST_SECONDS = 900
"""The Job is given up then, whatever holds it."""
KEPT_SECONDS = 3600
"""How long the Job and its log stay after its end."""


def notification_job(
    facts: AttemptFacts, stage: str, notify: NotifySpec, status: FineTuneJobStatus, settings: Settings
) -> dict[str, Any]:
    """The Job is named by `facts`, which say whose end it is."""
    labels = {**job_labels(facts.name, stage), "app.kubernetes.io/component": "notification"}
    pull_secrets = [{"name": secret} for secret in settings.trainer_pull_secrets]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": facts.job_name,
            "namespace": facts.namespace,
            "labels": labels,
            "ownerReferences": [owner(facts)],
        },
        "spec": {
            # The pod tries several times by itself. Another pod follows if its node is lost.
            "backoffLimit": 2,
            "activeDeadlineSeconds": LONGEST_SECONDS,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 5,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": USER,
                        "runAsGroup": USER,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [_container(facts, stage, notify, status, settings)],
                    "volumes": outbound.volumes(settings),
                    **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
                },
            },
        },
    }


def payload(facts: AttemptFacts, stage: str, status: FineTuneJobStatus) -> dict[str, Any]:
    """What the webhook gets. Chats show `text`."""
    title = f"{facts.namespace}/{facts.name}"
    return {
        "text": f"FineTuneJob {title}: {status.phase} ({status.reason}). {status.message}",
        "namespace": facts.namespace,
        "name": facts.name,
        "uid": facts.uid,
        "stage": stage,
        "phase": status.phase,
        "reason": status.reason,
        "message": status.message,
        "attempts": status.attempt or 0,
        "startTime": status.start_time,
        "completionTime": status.completion_time,
        "artifact": status.artifact.uri if status.artifact else None,
        "metrics": status.metrics or {},
    }


def _container(
    facts: AttemptFacts, stage: str, notify: NotifySpec, status: FineTuneJobStatus, settings: Settings
) -> dict[str, Any]:
    # The kubelet replaces $(NAME) in values, and $$ stands for a dollar.
    told = json.dumps(payload(facts, stage, status), ensure_ascii=False).replace("$", "$$")
    return {
        "name": CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.trainer_image_pull_policy,
        "args": ["notify"],
        "env": [
            {"name": "FINETUNE_NOTIFICATION", "value": told},
            _key("FINETUNE_NOTIFY_URL", notify.secret, "url"),
            _key("FINETUNE_NOTIFY_HEADER", notify.secret, "header", optional=True),
            *outbound.variables(facts, settings),
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": outbound.mounts(settings),
    }


def _key(name: str, secret: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    reference = {"name": secret, "key": key, **({"optional": True} if optional else {})}
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}
