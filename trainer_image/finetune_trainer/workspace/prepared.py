"""PREPARED.json: the models and data that a job trains on, and where they are in the workspace.

``prepare`` writes it last. The launcher reads it to decide whether to prepare, and every rank reads it. Paths are
stored relative to their mount, so that another pod, or a laptop, finds them where it mounts the same volumes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.contract import ResolvedJob
from finetune_api.status import Prepared
from pydantic import ValidationError

from finetune_trainer.errors import WorkspaceUnusable
from finetune_trainer.workspace.files import read_json, write_json
from finetune_trainer.workspace.folders import Folders

FILE = "PREPARED.json"
MANIFEST = "manifest.json"
"""The file that is written last into an entry of the cache: the entry is complete."""
VOLUME = "volume:"
FOLDERS = ("model", "adapter", "reference", "reference_base", "reward", "reward_base")


@dataclass(frozen=True)
class PreparedJob:
    """What training needs besides the job itself. Nothing here changes during the life of the job."""

    model: Path
    adapter: Path | None
    """The adapter that the job starts from, if any."""
    data: Path
    """Entry of the cache, which `finetune_trainer.data.splits` reads."""
    splits: list[str]
    """train, and with evaluation: eval, or eval-1, eval-2, ... for several data sets."""
    summary: Prepared
    digests: dict[str, str] = field(default_factory=dict)
    """Source -> sha256 of the fetched files."""
    revisions: dict[str, str] = field(default_factory=dict)
    """Source on a hub -> commit."""
    base_digest: str = ""
    """sha256 of the model without its own code. Adapters that are trained on this model name it."""
    template: dict[str, Any] = field(default_factory=dict)
    """How conversations were rendered, for provenance."""
    reference: Path | None = None
    """Reference model or adapter of stage dpo, kto or ppo, if the job names one."""
    reference_base: Path | None = None
    """Base model of the reference, when that is an adapter."""
    reward: Path | None = None
    """Reward model or adapter of stage ppo."""
    reward_base: Path | None = None
    """Base model of the reward model, when that is an adapter."""
    tokenizer_digest: str = ""
    """Digest of the tokenizer's behaviour; see `prepare.tokenizer_identity`."""
    memory: dict[str, Any] | None = None
    """`prepare.footprint.Footprint`, by which attempts decide what they recompute. None if no estimate is possible."""

    @property
    def folders(self) -> dict[str, Path | None]:
        """Name -> directory of every model and adapter; None for those that the job does not use."""
        return {name: getattr(self, name) for name in FOLDERS}


def write(folders: Folders, job: ResolvedJob, prepared: PreparedJob) -> None:
    """Write PREPARED.json atomically."""
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
        "memory": prepared.memory,
    }
    write_json(folders.job / FILE, content)


def read(folders: Folders, job: ResolvedJob) -> PreparedJob | None:
    """What was prepared for this job. None when nothing was, or when a part of it is no longer in the workspace. Then
    the job is prepared again, which takes seconds when the cache still has the parts."""
    try:
        content = read_json(folders.job / FILE)
        if content is None or content["digest"] != job.digest:
            return None
        models = {name: _absolute(folders, content[name]) if content[name] else None for name in FOLDERS[1:]}
        prepared = PreparedJob(
            model=_absolute(folders, content["model"]),
            **models,
            data=_absolute(folders, content["data"]),
            splits=list(content["splits"]),
            summary=Prepared.model_validate(content["summary"]),
            digests=dict(content["digests"]),
            revisions=dict(content["revisions"]),
            base_digest=str(content["base"]),
            template=dict(content["template"]),
            tokenizer_digest=str(content["tokenizer"]),
            memory=content.get("memory"),
        )
    except (WorkspaceUnusable, KeyError, TypeError, ValueError, ValidationError):
        return None
    complete = all(path.is_dir() for path in prepared.folders.values() if path is not None)
    return prepared if complete and (prepared.data / MANIFEST).is_file() else None


def _relative(folders: Folders, path: Path) -> str:
    """``<path>`` in the workspace, or ``volume:<claim>/<path>``."""
    for root, prefix in (
        (folders.workspace, ""),
        *((root, f"{VOLUME}{claim}/") for claim, root in sorted(folders.volumes.items())),
    ):
        if path.resolve().is_relative_to(root.resolve()):
            return prefix + path.resolve().relative_to(root.resolve()).as_posix()
    raise AssertionError(f"{path} is in no volume: models are on volumes or in the workspace")


def _absolute(folders: Folders, text: str) -> Path:
    if not text.startswith(VOLUME):
        return folders.workspace / text
    claim, _, path = text.removeprefix(VOLUME).partition("/")
    root = folders.volumes.get(claim)
    # For a claim that is no longer mounted: a path that does not exist.
    return root / path if root is not None else folders.workspace / "not-mounted" / claim
