"""What a run keeps in a checkpoint besides weights and optimizer: the state of named objects.

``stage.safetensors`` has their tensors and ``stage.json`` the rest, so nothing in there is a pickle. Written by rank 0,
read by every rank.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

TENSORS, REST = "stage.safetensors", "stage.json"


class Stateful(Protocol):
    """Goes on where it was: state_dict() holds tensors and whatever JSON can say, by name."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def write(folder: Path, objects: Mapping[str, Stateful]) -> None:
    """Called between two optimizer steps, so that all of it is of the same moment."""
    import torch
    from safetensors.torch import save_file

    rest: dict[str, dict[str, Any]] = {}
    tensors: dict[str, torch.Tensor] = {}
    for owner, kept in objects.items():
        rest[owner] = {}
        for name, value in kept.state_dict().items():
            if isinstance(value, torch.Tensor):
                tensors[f"{owner}.{name}"] = value.detach().cpu().contiguous()
            else:
                rest[owner][name] = value
    if tensors:
        save_file(tensors, folder / TENSORS)
    (folder / REST).write_text(json.dumps(rest, indent=1), encoding="utf-8")


def read(folder: Path, objects: Mapping[str, Stateful]) -> None:
    """Hand each object what it kept."""
    from safetensors.torch import load_file

    states: dict[str, dict[str, Any]] = json.loads((folder / REST).read_text(encoding="utf-8"))
    if (folder / TENSORS).is_file():
        for path, tensor in load_file(folder / TENSORS).items():
            owner, _, name = path.partition(".")
            states[owner][name] = tensor
    for owner, kept in objects.items():
        kept.load_state_dict(states[owner])
