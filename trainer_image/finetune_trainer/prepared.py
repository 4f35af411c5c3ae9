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
FOLDERS = ("model", "adapter", "reference", "reference_base", "reward", "reward_base")


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
    base_digest: str = ""
    """sha256 of the model without its own code: what adapters that are trained on it fit."""
    template: dict[str, Any] = field(default_factory=dict)
    """How conversations became tokens, for provenance."""
    reference: Path | None = None
    """Model or adapter that stage dpo, kto or ppo compares with, where the job names one."""
    reference_base: Path | None = None
    """Model that the reference goes on, where it is an adapter."""
    reward: Path | None = None
    """Model or adapter that scores answers in stage ppo."""
    reward_base: Path | None = None
    """Model that the reward adapter goes on."""
    tokenizer_digest: str = ""
    """Of what the tokenizer does; see `prepare.tokenizers`."""

    @property
    def folders(self) -> dict[str, Path | None]:
        """All that may be among its folders besides the data, by name."""
        return {name: getattr(self, name) for name in FOLDERS}


def write(folders: "Folders", job: ResolvedJob, prepared: PreparedJob) -> None:
    """Whole or not at all."""
    from finetune_trainer.workspace import write_json

    folders.job.mkdir(parents=True, exist_ok=True)
    content = {
        "digest": job.digest,
        **{name: _relative(folders, path) if path else None for name, path in prepared.folders.items()},
        "data": _relative(folders, prepared.data),
        "splits": prepared.splits,
        "summary": prepared.summary.to_dict(),
        "digests": prepared.digests,
        "revisions": prepared.revisions,
        "base": prepared.base_digest,
        "template": prepared.template,
        "tokenizer": prepared.tokenizer_digest,
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
        others = {name: _absolute(folders, content[name]) if content[name] else None for name in FOLDERS[1:]}
        prepared = PreparedJob(
            model=_absolute(folders, content["model"]),
            **others,
            data=_absolute(folders, content["data"]),
            splits=list(content["splits"]),
            summary=Prepared.model_validate(content["summary"]),
            digests=dict(content["digests"]),
            revisions=dict(content["revisions"]),
            base_digest=str(content["base"]),
            template=dict(content["template"]),
            tokenizer_digest=str(content["tokenizer"]),
        )
    except (WorkspaceUnusable, KeyError, TypeError, ValueError, ValidationError):
        return None
    there = all(path.is_dir() for path in prepared.folders.values() if path is not None)
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
