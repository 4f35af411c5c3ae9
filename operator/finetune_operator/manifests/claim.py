"""The workspace that the operator makes where a job asks for one: spec.workspace.claim."""

from typing import Any

from finetune_api.contract import AttemptFacts, claim_name
from finetune_api.spec import FineTuneJobSpec

from finetune_operator.manifests.ownership import owner
from finetune_operator.names import LABEL_UID, job_labels


def workspace_claim(facts: AttemptFacts, spec: FineTuneJobSpec) -> dict[str, Any] | None:
    """None where the job brings a claim of its own. Owned by the job only if it is to go with it: else deleting the
    FineTuneJob would delete the model."""
    wanted = spec.workspace.claim
    if wanted is None:
        return None
    metadata: dict[str, Any] = {
        "name": claim_name(facts.name, spec),
        "namespace": facts.namespace,
        "labels": {**job_labels(facts.name, spec.stage), LABEL_UID: facts.uid},
    }
    if not spec.workspace.retain:
        metadata["ownerReferences"] = [owner(facts)]
    claim: dict[str, Any] = {
        "accessModes": [wanted.access_mode],
        "resources": {"requests": {"storage": wanted.size}},
    }
    if wanted.storage_class_name:
        claim["storageClassName"] = wanted.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
