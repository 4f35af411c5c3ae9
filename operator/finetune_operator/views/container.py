"""The containers of a pod: the trainer's, and those that webhooks and policies of the cluster have added to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from finetune_operator.names import CONTAINER
from finetune_operator.views.metadata import Raw, section

ContainerKind = Literal["init container", "sidecar container", "container"]
"""A sidecar container is an init container that Kubernetes restarts, and ends after the containers of the pod."""


@dataclass(frozen=True)
class OtherContainer:
    """A container that the operator did not create, and what the kubelet reports about it."""

    name: str
    kind: ContainerKind
    image: str = ""
    requests: Mapping[str, str] = field(default_factory=dict)
    waiting_reason: str = ""
    waiting_message: str = ""
    running: bool = False
    started: bool = False
    """Whether its startup probe, if any, has succeeded: the trainer waits for the start of a sidecar container."""
    exit_code: int | None = None
    """How it ended; for a container that is restarted, how it ended last."""
    terminated: bool = False
    """Whether it has ended and is not restarted so far."""
    terminated_reason: str = ""

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}"


def trainer(containers: Raw, field: str) -> Raw:
    """The trainer's container in a list of spec or status, wherever it is; empty if it is not there."""
    listed = containers.get(field) or []
    return next((container for container in listed if container.get("name") == CONTAINER), {})


def requested(container: Raw) -> dict[str, str]:
    """The requests of a container, as text. Kubernetes writes equal quantities of a pod and its template alike."""
    return {name: str(amount) for name, amount in section(section(container, "resources"), "requests").items()}


def memory_limit(container: Raw) -> str:
    """The memory limit of a container in spec or status; empty if it has none."""
    return str(section(section(container, "resources"), "limits").get("memory", ""))


def other_containers(pod: Raw) -> tuple[OtherContainer, ...]:
    """The containers of a pod that are not the trainer's, in the order of their start."""
    spec, status = section(pod, "spec"), section(pod, "status")
    listed = [
        *((container, "initContainerStatuses") for container in spec.get("initContainers") or []),
        *((container, "containerStatuses") for container in spec.get("containers") or []),
    ]
    others = []
    for container, reported in listed:
        if reported == "containerStatuses" and container.get("name") == CONTAINER:
            continue
        found: Raw = next((s for s in status.get(reported) or [] if s.get("name") == container.get("name")), {})
        kind: ContainerKind = "container" if reported == "containerStatuses" else "init container"
        if kind == "init container" and container.get("restartPolicy") == "Always":
            kind = "sidecar container"
        others.append(_other(container, kind, found))
    return tuple(others)


def _other(container: Raw, kind: ContainerKind, status: Raw) -> OtherContainer:
    state = section(status, "state")
    waiting, terminated = section(state, "waiting"), section(state, "terminated")
    last = terminated or section(section(status, "lastState"), "terminated")
    return OtherContainer(
        name=str(container.get("name", "")),
        kind=kind,
        image=str(container.get("image", "")),
        requests=requested(container),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        running="running" in state,
        started=status.get("started") is True,
        exit_code=last.get("exitCode"),
        terminated="terminated" in state,
        terminated_reason=last.get("reason", ""),
    )
