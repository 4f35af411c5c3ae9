"""Operators of earlier releases, which know no Lease: nobody may lead while such an operator may work.

In an upgrade, pods of both releases exist at the same time. Pods that take part in the election carry a label. An
operator without the label may work as long as its pod exists. As long as its ReplicaSet wants pods, one may come back.
"""

from dataclasses import dataclass, field

from finetune_operator.cluster import Leases
from finetune_operator.names import LABEL_ELECTION
from finetune_operator.views.metadata import Raw, section


@dataclass
class Installation:
    """The objects of one installation of the chart."""

    selector: str
    """Selects its pods and ReplicaSets, of all releases. Empty: this operator does not run in a Deployment."""
    owners: list[Raw] = field(default_factory=list)
    """References to its Deployment. The garbage collector deletes the Lease after it."""

    async def earlier_releases(self, leases: Leases) -> list[str]:
        """Pods and ReplicaSets of releases without leader election. Raises ApiError."""
        if not self.selector:
            return []
        replica_sets = await leases.replica_sets(self.selector)
        self.owners = next((owners for raw in replica_sets if (owners := _deployment(raw))), [])
        wanting = [raw for raw in replica_sets if section(raw, "spec").get("replicas", 1) and not _elects(raw)]
        pods = await leases.pods(f"{self.selector},!{LABEL_ELECTION}")
        alive = [raw for raw in pods if section(raw, "status").get("phase") not in ("Succeeded", "Failed")]
        return [*(f"ReplicaSet {_name(raw)}" for raw in wanting), *(f"Pod {_name(raw)}" for raw in alive)]


def _name(raw: Raw) -> str:
    return str(section(raw, "metadata").get("name"))


def _elects(replica_set: Raw) -> bool:
    template = section(section(replica_set, "spec"), "template")
    return LABEL_ELECTION in section(section(template, "metadata"), "labels")


def _deployment(replica_set: Raw) -> list[Raw]:
    owners = section(replica_set, "metadata").get("ownerReferences") or []
    named = ("apiVersion", "kind", "name", "uid")
    return [{name: owner.get(name) for name in named} for owner in owners if owner.get("kind") == "Deployment"]
