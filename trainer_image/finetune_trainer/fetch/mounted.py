"""Mounted sources: ``pvc://`` and ``configmap://``.

Called by `dispatch`. A link must not lead out of its volume. When a path does not exist, the message lists what the
nearest existing directory contains.
"""

import os
from pathlib import Path

from finetune_api import source
from finetune_api.source import ConfigMapKey, PvcPath

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.workspace.folders import access_denied, check_readable

SHOWN = 20


def find(uri: str, volumes: dict[str, Path], config_maps: Path | None = None) -> Path:
    """The file or directory behind ``pvc://claim/path`` or ``configmap://name/key``. Raises NotFound with a list of
    what exists instead, and AccessDenied."""
    place = source.parse(uri)
    if isinstance(place, ConfigMapKey):
        root = config_maps / place.name if config_maps else None
        if root is None or not root.is_dir():
            raise NotFound(
                f"{uri}: ConfigMap {place.name!r} is not mounted. Check that it exists in the namespace of the job"
            )
        return _resolve(uri, root, place.key, f"configmap://{place.name}/")
    if isinstance(place, PvcPath):
        root = volumes.get(place.claim)
        if root is None:
            mounted = ", ".join(sorted(volumes)) or "none"
            raise NotFound(f"{uri}: claim {place.claim!r} is not mounted. Mounted claims: {mounted}")
        return _resolve(uri, root, place.path, f"pvc://{place.claim}/")
    raise InvalidSpec(f"{uri} is not on a volume. Preparation has to fetch it before training starts")


def _resolve(uri: str, root: Path, path: str, shown: str) -> Path:
    try:
        resolved = (root / path).resolve()
    except (OSError, RuntimeError):  # a cycle of links
        raise NotFound(f"{uri}: a link in this path leads to itself. Replace it with the file itself") from None
    if not resolved.is_relative_to(root.resolve()):
        raise NotFound(f"{uri}: a link leads out of the volume. Put the file itself there")
    try:
        resolved.stat()
    except PermissionError:
        raise access_denied(resolved, uri) from None
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{uri}: no such file or directory. {_list_parent(shown, root.resolve(), resolved)}") from None
    check_readable(resolved, uri)
    return resolved


def _list_parent(shown: str, root: Path, missing: Path) -> str:
    parent = next(p for p in missing.parents if p.exists())
    inside = parent.relative_to(root).as_posix()
    where = shown.rstrip("/") + ("/" if inside == "." else f"/{inside}")
    if not parent.is_dir():
        return f"{where} is a file"
    try:
        return f"{where} has: {', '.join(sorted(p.name for p in parent.iterdir())[:SHOWN]) or 'nothing'}"
    except PermissionError:
        return f"uid {os.getuid()} may not list {where}"
