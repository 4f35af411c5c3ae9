"""A Lease, as leader election reads it."""

from dataclasses import dataclass

from finetune_operator.views.metadata import Raw, section

RELEASED_SECONDS = 1
"""The duration that a holder leaves when it gives the Lease back, as client-go does."""


@dataclass(frozen=True)
class LeaseView:
    """Values of a wrong type count as absent."""

    holder: str
    seconds: int
    """For how long the holder has asked others to wait after a renewal."""
    transitions: int
    version: str
    released: bool
    """Whether its last holder gave it back. An empty Lease alone does not say so: somebody may have emptied it."""


def lease_view(raw: Raw) -> LeaseView:
    spec = section(raw, "spec")
    holder, seconds, transitions = (spec.get(n) for n in ("holderIdentity", "leaseDurationSeconds", "leaseTransitions"))
    holder = holder if isinstance(holder, str) else ""
    return LeaseView(
        holder=holder,
        seconds=seconds if isinstance(seconds, int) else 0,
        transitions=transitions if isinstance(transitions, int) else 0,
        version=str(section(raw, "metadata").get("resourceVersion")),
        released=not holder and seconds == RELEASED_SECONDS,
    )
