"""Prepared data in the workspace: cache/data/<key>/, built once for all jobs and attempts that need the same data.

The key is a digest of everything that decides the rows, so it is known before a row is read. An entry is built in a
staging folder of the run and renamed after its manifest is written, so it is complete or absent; the next run that
holds the key's lease removes what a killed run left. If the workspace is full, unused entries are removed and the
entry is built once more. The entry's digest is that of its data files, so it does not depend on the run, the number of
processes or the attempt that built it.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.contract import ResolvedJob, canonical
from finetune_api.data import UNITS

from finetune_trainer.errors import NoSpace
from finetune_trainer.fetch import FetchContext
from finetune_trainer.fetch.lease import lease
from finetune_trainer.fetch.prune import RECENT, mark_used, prune
from finetune_trainer.workspace.files import digest_folder, read_json, sync_folder, write_json
from finetune_trainer.workspace.prepared import MANIFEST
from finetune_trainer.workspace.storage import NO_SPACE

FORMAT = 5
"""Version of the entries and of the way in which rows are made. It is raised when either changes."""
LIBRARIES = ("tokenizers", "transformers", "jinja2", "pyarrow")
"""Libraries whose version may change the rows."""
GB = 1e9

log = logging.getLogger(__name__)


class CacheEntry(NamedTuple):
    """A complete entry."""

    folder: Path
    manifest: dict[str, Any]
    """What ``build`` returned, and: digest, bytes, and the size of each file."""
    cached: bool
    """Whether it was complete before this run."""


def entry_key(job: ResolvedJob, contents: list[str], tokenizer: str, template: dict[str, Any] | None) -> str:
    """The key of a job's entry, equal for stages that train the same rows. ``contents``: digest of each fetched data
    set. ``tokenizer``: digest of the tokenizer."""
    training, evaluation = job.training, job.evaluation
    irrelevant = {"every_steps": None, "early_stopping": None, "generate": None}
    decisive = {
        "format": FORMAT,
        "unit": UNITS[job.stage],
        "answers": job.ppo.max_new_tokens if job.ppo else None,
        "datasets": [dataset.to_dict() for dataset in job.datasets],
        "evaluation": evaluation.model_copy(update=irrelevant).to_dict() if evaluation else None,
        "contents": contents,
        "tokenizer": tokenizer,
        "template": template,
        "spec": job.template.to_dict(),
        "cutoff": training.cutoff_length,
        "packing": training.packing,
        "mixing": job.mixing,
        "seed": training.seed,
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(canonical(decisive).encode()).hexdigest()[:40]


@dataclass
class BuildSize:
    """How much of the data is read, to estimate the size of the whole entry. ``build`` updates it."""

    read: int = 0
    """Bytes, as far as known: those of an archive or a table count when it ends."""
    total: int = 0
    """Bytes."""
    copies: int = 1
    """How many times rows are written until the entry is complete."""

    def estimate(self, written: int) -> int:
        """Bytes of the whole entry while it is built, if ``written`` bytes are written so far."""
        if self.copies > 1 and 0 < self.read >= self.total:
            return 3 * written // 2  # rows are being copied, so a part of the copies is written, too
        return self.copies * (written * self.total // self.read if self.read else 2 * written)


def get_or_build(
    context: FetchContext,
    key: str,
    build: Callable[[Path], dict[str, Any]],
    check_stop: Callable[[], None],
    size: BuildSize | None = None,
) -> CacheEntry:
    """The entry of a key. ``build`` fills an empty folder and returns facts for the manifest. Raises NoSpace."""
    home = context.cache / "data"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / key
    if (manifest := _complete_manifest(folder)) is not None:
        mark_used(folder)
        return CacheEntry(folder, manifest, True)
    with lease(home / f".{key}.lease", context.owner, check_stop, context.attempt) as held:
        if (manifest := _complete_manifest(folder)) is not None:
            return CacheEntry(folder, manifest, True)
        for left in (*home.glob(f".staging-{key}-*"), folder):
            shutil.rmtree(left, ignore_errors=True)
        staging = home / f".staging-{key}-{context.owner}"
        try:
            facts = _build(context.cache, staging, build, size or BuildSize())
            digest, total = digest_folder(staging)
            files = {file.name: file.stat().st_size for file in sorted(staging.iterdir())}
            manifest = {"digest": digest, "bytes": total, "files": files, **facts}
            sync_folder(staging)
            held.check()
            write_json(staging / MANIFEST, manifest)
            staging.rename(folder)
            sync_folder(home)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return CacheEntry(folder, manifest, False)


def _build(
    cache: Path, staging: Path, build: Callable[[Path], dict[str, Any]], size: BuildSize, *, pruned: bool = False
) -> dict[str, Any]:
    """The facts for the manifest. If space runs out, the cache is pruned and the build starts again, without the files
    that it has written so far."""
    staging.mkdir()
    try:
        return build(staging)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        written = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
        needed = size.estimate(written)
        shutil.rmtree(staging)
        if not pruned:
            prune(cache, RECENT, needed)
        space = shutil.disk_usage(cache)
        if pruned or space.free < needed:
            raise NoSpace(
                f"The prepared data needs about {needed / GB:.2f} GB in the workspace, which has {space.free / GB:.2f}"
                f" GB free of {space.total / GB:.2f} GB ({written / GB:.2f} GB were written after"
                f" {size.read / GB:.2f} of {size.total / GB:.2f} GB of data). Enlarge the workspace's claim, or remove"
                " old jobs/ and cache/ from it"
            ) from error
    log.info("The workspace was full. Unused cache entries are removed, and the data is prepared again")
    return _build(cache, staging, build, size, pruned=True)


def _complete_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, if all files have their full size. Contents are synced before the manifest is written."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return None
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != MANIFEST}
    return manifest if sizes == manifest.get("files") else None
