"""PREPARED.json: where what a job trains on lies in the workspace, and what it is.

Written by ``prepare`` as its last act, read by ``launch`` (is there anything to prepare?) and by every rank. Places are
kept relative to what is mounted, so that another pod, or a laptop, finds them where it has mounted the same volumes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.contract import ResolvedJob
from finetune_api.status import Prepared
from pydantic import ValidationError

if TYPE_CHECKING:
    from finetune_trainer.run import Folders

FILE = "PREPARED.json"
MANIFEST = "manifest.json"
"""Last file of an entry of the cache: the entry is complete."""
VOLUME = "volume:"


@dataclass(frozen=True)
class PreparedJob:
    """All that training needs besides the job itself. Nothing of it changes while the job lives."""

    model: Path
    adapter: Path | None
    """An earlier adapter that the job starts from."""
    data: Path
    """Entry of the cache; `finetune_trainer.data.store` reads it."""
    splits: list[str]
    """train, and if the job is evaluated: eval, or eval-1, eval-2, ... where there are several data sets."""
    summary: Prepared
    digests: dict[str, str] = field(default_factory=dict)
    """Source -> sha256 of what was fetched."""
    revisions: dict[str, str] = field(default_factory=dict)
    """Source on a hub -> commit."""
    template: dict[str, Any] = field(default_factory=dict)
    """How conversations became tokens, for provenance."""


def write(folders: "Folders", job: ResolvedJob, prepared: PreparedJob) -> None:
    """Whole or not at all."""
    from finetune_trainer.workspace import write_json

    folders.job.mkdir(parents=True, exist_ok=True)
    content = {
        "digest": job.digest,
        "model": _relative(folders, prepared.model),
        "adapter": _relative(folders, prepared.adapter) if prepared.adapter else None,
        "data": _relative(folders, prepared.data),
        "splits": prepared.splits,
        "summary": prepared.summary.to_dict(),
        "digests": prepared.digests,
        "revisions": prepared.revisions,
        "template": prepared.template,
    }
    write_json(folders.job / FILE, content)


def read(folders: "Folders", job: ResolvedJob) -> PreparedJob | None:
    """What was prepared for this very job. None when nothing was, or when what was prepared is no longer there: then it
    is prepared again, which costs seconds where the cache still has it."""
    from finetune_trainer.errors import WorkspaceUnusable
    from finetune_trainer.workspace import read_json

    try:
        content = read_json(folders.job / FILE)
        if content is None or content["digest"] != job.digest:
            return None
        prepared = PreparedJob(
            model=_absolute(folders, content["model"]),
            adapter=_absolute(folders, content["adapter"]) if content["adapter"] else None,
            data=_absolute(folders, content["data"]),
            splits=list(content["splits"]),
            summary=Prepared.model_validate(content["summary"]),
            digests=dict(content["digests"]),
            revisions=dict(content["revisions"]),
            template=dict(content["template"]),
        )
    except (WorkspaceUnusable, KeyError, TypeError, ValueError, ValidationError):
        return None
    there = prepared.model.is_dir() and (prepared.adapter is None or prepared.adapter.is_dir())
    return prepared if there and (prepared.data / MANIFEST).is_file() else None


def _relative(folders: "Folders", path: Path) -> str:
    """As ``path`` in the workspace or ``volume:<claim>/<path>``."""
    for root, prefix in (
        (folders.workspace, ""),
        *((root, f"{VOLUME}{claim}/") for claim, root in sorted(folders.volumes.items())),
    ):
        if path.resolve().is_relative_to(root.resolve()):
            return prefix + path.resolve().relative_to(root.resolve()).as_posix()
    raise AssertionError(f"{path} is in no volume: models come from volumes or are fetched into the workspace")


def _absolute(folders: "Folders", text: str) -> Path:
    if not text.startswith(VOLUME):
        return folders.workspace / text
    claim, _, path = text.removeprefix(VOLUME).partition("/")
    root = folders.volumes.get(claim)
    # A claim that is no longer mounted: a path that isn't there.
    return root / path if root is not None else folders.workspace / "not-mounted" / claim
