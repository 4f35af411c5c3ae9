"""The state in a checkpoint besides weights and optimizer: counters, metrics and what a stage needs, by name.

``stage.safetensors`` has the tensors and ``stage.json`` the rest, so no file is a pickle. Rank 0 writes them, and every
rank reads them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

TENSORS, REST = "stage.safetensors", "stage.json"


class Stateful(Protocol):
    """An object that continues from its saved state. state_dict() has tensors and JSON values, by name."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save(folder: Path, objects: Mapping[str, Stateful]) -> None:
    """Write the state of all objects. Called between two optimizer steps, so all of it belongs to one moment."""
    import torch
    from safetensors.torch import save_file

    rest: dict[str, dict[str, Any]] = {}
    tensors: dict[str, torch.Tensor] = {}
    for owner, stateful in objects.items():
        rest[owner] = {}
        for name, value in stateful.state_dict().items():
            if isinstance(value, torch.Tensor):
                tensors[f"{owner}.{name}"] = value.detach().cpu().contiguous()
            else:
                rest[owner][name] = value
    if tensors:
        save_file(tensors, folder / TENSORS)
    (folder / REST).write_text(json.dumps(rest, indent=1), encoding="utf-8")


def load(folder: Path, objects: Mapping[str, Stateful]) -> None:
    """Give each object its saved state."""
    from safetensors.torch import load_file

    states: dict[str, dict[str, Any]] = json.loads((folder / REST).read_text(encoding="utf-8"))
    if (folder / TENSORS).is_file():
        for path, tensor in load_file(folder / TENSORS).items():
            owner, _, name = path.partition(".")
            states[owner][name] = tensor
    for owner, stateful in objects.items():
        stateful.load_state_dict(states[owner])
