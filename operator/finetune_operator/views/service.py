"""A Service by which the pods of an attempt find each other."""

from dataclasses import dataclass

from finetune_operator.views.metadata import Key, Raw, metadata, parse_labels


@dataclass(frozen=True)
class ServiceView:
    """The Service of an attempt."""

    key: Key
    name: str
    uid: str
    resource_version: int


def service_view(raw: Raw, owner_uid: str) -> ServiceView | None:
    """None for a Service that the FineTuneJob with this uid does not own, whatever its labels."""
    meta = metadata(raw)
    identity = parse_labels(meta)
    owners = (owner.get("uid") for owner in meta.get("ownerReferences") or [])
    if identity is None or owner_uid not in owners:
        return None
    return ServiceView(identity[0], meta["name"], meta["uid"], int(meta["resourceVersion"]))
