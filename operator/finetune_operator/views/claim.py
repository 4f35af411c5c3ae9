"""A PersistentVolumeClaim: what it offers, for whom the operator created it, and whether it is deleted with a job."""

from dataclasses import dataclass

from finetune_api.job import KIND

from finetune_operator.names import LABEL_JOB, LABEL_UID
from finetune_operator.views.metadata import Raw, section


@dataclass(frozen=True)
class ClaimView:
    """A claim that holds an artifact, or that a job has as its workspace."""

    modes: tuple[str, ...]
    """Access modes that it requests, and those that its volume offers."""
    owner: str = ""
    """Name of the FineTuneJob that it is deleted with; empty if it stays."""
    owner_uid: str = ""
    job: str = ""
    """Name of the FineTuneJob that the operator created it for; empty if somebody else created it."""
    job_uid: str = ""
    deleting: bool = False
    """No new pod can mount a claim that is being deleted, and nothing brings it back."""
    sizes: tuple[str, ...] = ()
    """The size that it requests, and that of its volume. While it is expanded, the volume is smaller."""
    storage_class: str = ""


def claim_view(raw: Raw) -> ClaimView:
    meta, spec, status = (section(raw, name) for name in ("metadata", "spec", "status"))
    owner: Raw = next((o for o in meta.get("ownerReferences") or [] if o.get("kind") == KIND), {})
    labels = section(meta, "labels")
    modes = [*(spec.get("accessModes") or []), *(status.get("accessModes") or [])]
    sizes = (section(section(spec, "resources"), "requests"), section(status, "capacity"))
    return ClaimView(
        modes=tuple(dict.fromkeys(modes)),
        owner=owner.get("name", ""),
        owner_uid=owner.get("uid", ""),
        job=labels.get(LABEL_JOB, ""),
        job_uid=labels.get(LABEL_UID, ""),
        deleting="deletionTimestamp" in meta,
        sizes=tuple(str(amounts["storage"]) for amounts in sizes if amounts.get("storage")),
        storage_class=spec.get("storageClassName") or "",
    )
