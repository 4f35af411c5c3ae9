"""Which checkpoints of a job there are, and which of them are complete.

Called by rank 0 at start (`newest`) and after each save (`prune`). A run that was killed while it saved leaves a folder
with files missing or cut short: such a one is never resumed from. Reads no tensor and needs no torch.
"""

import json
import logging
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "checkpoint-"
STATE = "trainer_state.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
PICKLED = ("optimizer.pt", "scheduler.pt")


@dataclass(frozen=True)
class Found:
    """One complete checkpoint."""

    path: Path
    step: int


def all_folders(checkpoints: Path) -> list[Path]:
    """Every checkpoint folder of every run of the job, newest step first."""
    folders = [path for path in checkpoints.glob(f"*/{PREFIX}*") if path.is_dir() and _step(path) is not None]
    return sorted(folders, key=lambda path: (_step(path) or 0, path.stat().st_mtime), reverse=True)


def newest(checkpoints: Path) -> Found | None:
    """The complete checkpoint with the highest step over all runs of the job."""
    for path in all_folders(checkpoints):
        flaw = incomplete(path)
        if flaw is None:
            return Found(path, _step(path) or 0)
        log.warning("checkpoint %s is skipped: %s", path, flaw)
    return None


def incomplete(path: Path) -> str | None:
    """What is wrong with a checkpoint; None when it is whole."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state["global_step"] != _step(path):
            return f"{STATE} is of step {state['global_step']}"
        weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if weights is None:
            return "it has no weights"
        for file in _shards(weights):
            _check_safetensors(file)
        for name in PICKLED:
            with zipfile.ZipFile(path / name):  # its directory stands at the end: a file cut short has none
                pass
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        return f"it can't be read ({error})"
    return None


def prune(checkpoints: Path, own: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest complete checkpoints. Does nothing before the run whose folder is ``own`` has
    a complete one: until then, those of other runs are all there is."""
    complete = [path for path in all_folders(checkpoints) if incomplete(path) is None]
    if not any(path.parent == own for path in complete):
        return
    kept = set(complete[:keep])
    for path in all_folders(checkpoints):
        if path not in kept:
            log.info("deleting checkpoint %s", path)
            doomed = path.with_name(f".deleting-{path.name}")
            try:
                os.replace(path, doomed)  # so that a half deleted folder is never taken for a checkpoint
                shutil.rmtree(doomed)
            except OSError as error:
                log.warning("checkpoint %s can't be deleted: %s", path, error)


def _step(path: Path) -> int | None:
    number = path.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() else None


def _shards(weights: Path) -> list[Path]:
    if weights.suffix == ".safetensors":
        return [weights]
    index = json.loads(weights.read_text(encoding="utf-8"))
    return sorted({weights.parent / name for name in index["weight_map"].values()})


def _check_safetensors(file: Path) -> None:
    """A safetensors file says in its header how long it is."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file.name} is cut short")
        header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if file.stat().st_size != 8 + length + max(ends, default=0):
        raise ValueError(f"{file.name} is cut short")
