"""Sources that are mounted: ``pvc://`` and ``configmap://``.

Called by ``source``. A link must not lead out of its volume, and
what isn't there is told together with what is.
"""

import os
from pathlib import Path

from finetune_api import source
from finetune_api.source import ConfigMapKey, PvcPath

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.run import check_readable, denied

SHOWN = 20


def find(uri: str, volumes: dict[str, Path], config_maps: Path | None = None) -> Path:
    """The file or folder behind ``pvc://claim/path`` or ``configmap://name/key``. Raises NotFound, saying what is there
    instead, and AccessDenied."""
    place = source.parse(uri)
    if isinstance(place, ConfigMapKey):
        root = config_maps / place.name if config_maps else None
        if root is None or not root.is_dir():
            raise NotFound(f"{uri}: ConfigMap {place.name!r} is not mounted; is it in the job's namespace?")
        return _inside(uri, root, place.key, f"configmap://{place.name}/")
    if isinstance(place, PvcPath):
        root = volumes.get(place.claim)
        if root is None:
            are = ", ".join(sorted(volumes)) or "none"
            raise NotFound(f"{uri}: claim {place.claim!r} is not mounted; mounted are: {are}")
        return _inside(uri, root, place.path, f"pvc://{place.claim}/")
    raise InvalidSpec(f"{uri} is not on a volume: preparation fetches it before training")


def _inside(uri: str, root: Path, path: str, shown: str) -> Path:
    try:
        found = (root / path).resolve()
    except (OSError, RuntimeError):  # links in a circle
        raise NotFound(f"{uri}: a link in it leads to itself") from None
    if not found.is_relative_to(root.resolve()):
        raise NotFound(f"{uri}: a link leads out of the volume; put the file itself there")
    try:
        found.stat()
    except PermissionError:
        raise denied(found, uri) from None
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{uri}: no such file or folder; {_there(shown, root.resolve(), found)}") from None
    check_readable(found, uri)
    return found


def _there(shown: str, root: Path, missing: Path) -> str:
    parent = next(p for p in missing.parents if p.exists())
    inside = parent.relative_to(root).as_posix()
    where = shown.rstrip("/") + ("/" if inside == "." else f"/{inside}")
    if not parent.is_dir():
        return f"{where} is a file"
    try:
        return f"{where} has: {', '.join(sorted(p.name for p in parent.iterdir())[:SHOWN]) or 'nothing'}"
    except PermissionError:
        return f"{where} can't be listed by uid {os.getuid()}"
