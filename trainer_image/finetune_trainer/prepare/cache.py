"""Prepared data in the workspace: cache/data/<key>/, made once for all jobs and attempts that need the same.

The key is known before any row is read: it is made of what decides the rows. An entry is built in a folder of the run
that builds it and renamed when its manifest is written, so it is whole or not there; whatever a killed run left is
removed by the next one that holds the key's lease. Where the workspace fills up, what nobody needs is removed and the
entry built once more. Its digest is that of its data files, and hence the same whoever
built it, in how many processes and at which attempt.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune_api.contract import ResolvedJob, canonical
from finetune_api.data import UNITS

from finetune_trainer.errors import NoSpace
from finetune_trainer.fetch import Places
from finetune_trainer.fetch.lease import lease
from finetune_trainer.fetch.prune import RECENT, prune, used
from finetune_trainer.prepared import MANIFEST
from finetune_trainer.workspace import NO_SPACE, digest_folder, read_json, sync_folder, write_json

FORMAT = 4
"""Of the entries and of how rows are made: raised when either changes."""
LIBRARIES = ("tokenizers", "transformers", "jinja2", "pyarrow")
"""Their versions may change the rows."""
GB = 1e9

log = logging.getLogger(__name__)


def key(job: ResolvedJob, contents: list[str], tokenizer: str, template: dict[str, Any] | None) -> str:
    """What the entry of a job is called: the same for stages that train on the same. ``contents``: digests of what was
    fetched, data set by data set."""
    training, evaluation = job.training, job.evaluation
    rest = {"every_steps": None, "early_stopping": None, "generate": None}
    decisive = {
        "format": FORMAT,
        "unit": UNITS[job.stage],
        "answers": job.ppo.max_new_tokens if job.ppo else None,
        "datasets": [dataset.to_dict() for dataset in job.datasets],
        "evaluation": evaluation.model_copy(update=rest).to_dict() if evaluation else None,
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
class Input:
    """How much of the data has been read, to tell how large what is made of it becomes."""

    size: int = 0
    """Bytes, as far as they are known: of an archive or a table, when it ends."""
    total: int = 0
    copies: int = 1
    """How often rows are written before the entry is whole."""

    def needs(self, written: int) -> int:
        """Bytes of the whole entry while it is built, of which so many are written."""
        if self.copies > 1 and 0 < self.size >= self.total:
            return 3 * written // 2  # rows are being copied, so some of the copies are written, too
        return self.copies * (written * self.total // self.size if self.size else 2 * written)


def entry(
    places: Places,
    name: str,
    build: Callable[[Path], dict[str, Any]],
    check_stop: Callable[[], None],
    read: Input | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """(folder, manifest, whether it was there already). ``build`` fills an empty folder and returns its facts; it keeps
    ``read`` up to date. Raises NoSpace."""
    home = places.cache / "data"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / name
    if (manifest := _complete(folder)) is not None:
        used(folder)
        return folder, manifest, True
    with lease(home / f".{name}.lease", places.owner, check_stop, places.attempt) as held:
        if (manifest := _complete(folder)) is not None:
            return folder, manifest, True
        for left in (*home.glob(f".staging-{name}-*"), folder):
            shutil.rmtree(left, ignore_errors=True)
        staging = home / f".staging-{name}-{places.owner}"
        try:
            facts = _built(places.cache, staging, build, read or Input())
            digest, size = digest_folder(staging)
            files = {file.name: file.stat().st_size for file in sorted(staging.iterdir())}
            manifest = {"digest": digest, "bytes": size, "files": files, **facts}
            sync_folder(staging)
            held.check()
            write_json(staging / MANIFEST, manifest)
            staging.rename(folder)
            sync_folder(home)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return folder, manifest, False


def _built(
    cache: Path, staging: Path, build: Callable[[Path], dict[str, Any]], read: Input, *, cleared: bool = False
) -> dict[str, Any]:
    """The facts. It is built anew after room was made, as what it has written by then is in the way of its own rows."""
    staging.mkdir()
    try:
        return build(staging)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        written = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
        needed = read.needs(written)
        shutil.rmtree(staging)
        if not cleared:
            prune(cache, RECENT, needed)
        space = shutil.disk_usage(cache)
        if cleared or space.free < needed:
            raise NoSpace(
                f"The prepared data needs about {needed / GB:.2f} GB in the workspace, which has {space.free / GB:.2f}"
                f" GB free of {space.total / GB:.2f} GB ({written / GB:.2f} GB were written after"
                f" {read.size / GB:.2f} of {read.total / GB:.2f} GB of data): give its claim room, or remove old jobs/"
                " and cache/ from it"
            ) from error
    log.info("The workspace was full; there is room now, and the data is prepared once more")
    return _built(cache, staging, build, read, cleared=True)


def _complete(folder: Path) -> dict[str, Any] | None:
    """The manifest, if all its files are there in full length. Contents were synced before the manifest was written."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return None
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != MANIFEST}
    return manifest if sizes == manifest.get("files") else None
