"""The time that a rank computes in a step, without the time in which it waits for other ranks (`reporting.stragglers`).

With whole weights (ddp) it covers the data of the step and the forward passes, and the backward passes before the
last, in which ranks exchange gradients. With sharded weights (fsdp) ranks wait for each other in every layer, so it
covers the modules of one layer in the middle of the model.
"""

import time

import torch
from torch import nn

UNMEASURED = -1.0
"""Nothing was measured in this step."""


class OwnTime:
    """Measures a section of a step in which a rank waits for no other: on a GPU by two events in its stream, which cost
    nothing until they are read after the step."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._sections: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._begun: float | torch.cuda.Event | None = None

    def begin(self) -> None:
        """A section begins, if none has."""
        if self._begun is None:
            self._begun = self._now()

    def end(self) -> None:
        """The section ends, if one has begun."""
        if self._begun is not None:
            self._sections.append((self._begun, self._now()))
            self._begun = None

    def start(self) -> None:
        """A step begins: what was measured before is not of it."""
        self._sections, self._begun = [], None

    def take(self) -> float:
        """Seconds of all sections of the step; UNMEASURED without any. On a GPU its stream must have come so
        far."""
        sections = self._sections
        self.start()
        return sum(_seconds(begun, ended) for begun, ended in sections) if sections else UNMEASURED

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def measure_inside(layer: nn.Module, own_time: OwnTime) -> None:
    """Measure the modules of a layer of sharded weights: whoever computes it has its weights, and waits for nobody. An
    evaluation or a rollout is no step."""
    for module in layer.children():
        module.register_forward_pre_hook(lambda inner, _: own_time.begin() if inner.training else None)
        module.register_forward_hook(lambda inner, *_: own_time.end() if inner.training else None)


def _seconds(begun: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
    if isinstance(begun, float) and isinstance(ended, float):
        return ended - begun
    assert isinstance(begun, torch.cuda.Event), "both are of the same kind"
    assert isinstance(ended, torch.cuda.Event), "both are of the same kind"
    return float(begun.elapsed_time(ended)) / 1000
