"""Prepared data in the workspace: cache/data/<key>/, made once for all jobs and attempts that need the same.

The key is known before any row is read: it is made of what decides the rows. An entry is built in a folder of the run
that builds it and renamed when its manifest is written, so it is whole or not there; whatever a killed run left is
removed by the next one that holds the key's lease. Its digest is that of its data files, and hence the same whoever
built it, in how many processes and at which attempt.
"""

import hashlib
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune_api.contract import ResolvedJob, canonical

from finetune_trainer.fetch import Places
from finetune_trainer.fetch.lease import lease
from finetune_trainer.fetch.prune import used
from finetune_trainer.prepared import MANIFEST
from finetune_trainer.workspace import digest_folder, read_json, sync_folder, write_json

FORMAT = 3
"""Of the entries and of how rows are made: raised when either changes."""
LIBRARIES = ("tokenizers", "transformers", "jinja2", "pyarrow")
"""Their versions may change the rows."""


def key(job: ResolvedJob, contents: list[str], tokenizer: str, template: dict[str, Any] | None) -> str:
    """What the entry of a job is called. ``contents``: digests of what was fetched, data set by data set."""
    training, evaluation = job.training, job.evaluation
    decisive = {
        "format": FORMAT,
        "datasets": [dataset.to_dict() for dataset in job.datasets],
        "evaluation": evaluation.model_copy(update={"every_steps": None}).to_dict() if evaluation else None,
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


def entry(
    places: Places, name: str, build: Callable[[Path], dict[str, Any]], check_stop: Callable[[], None]
) -> tuple[Path, dict[str, Any], bool]:
    """(folder, manifest, whether it was there already). ``build`` fills an empty folder and returns its facts."""
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
        staging.mkdir()
        try:
            facts = build(staging)
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


def _complete(folder: Path) -> dict[str, Any] | None:
    """The manifest, if all its files are there in full length. Contents were synced before the manifest was written."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return None
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != MANIFEST}
    return manifest if sizes == manifest.get("files") else None
