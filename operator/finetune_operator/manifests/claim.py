"""The claim of the workspace that the operator creates for spec.workspace.claim."""

from typing import Any

from finetune_api.contract import AttemptFacts, claim_name
from finetune_api.spec import FineTuneJobSpec

from finetune_operator.manifests.ownership import owner
from finetune_operator.names import LABEL_UID, job_labels


def workspace_claim(facts: AttemptFacts, spec: FineTuneJobSpec) -> dict[str, Any] | None:
    """None if the job names its own claim. The job owns the claim only if retain is false: otherwise deleting the
    FineTuneJob would delete the model."""
    requested = spec.workspace.claim
    if requested is None:
        return None
    metadata: dict[str, Any] = {
        "name": claim_name(facts.name, spec),
        "namespace": facts.namespace,
        "labels": {**job_labels(facts.name, spec.stage), LABEL_UID: facts.uid},
    }
    if not spec.workspace.retain:
        metadata["ownerReferences"] = [owner(facts)]
    claim: dict[str, Any] = {
        "accessModes": [requested.access_mode],
        "resources": {"requests": {"storage": requested.size}},
    }
    if requested.storage_class_name:
        claim["storageClassName"] = requested.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
