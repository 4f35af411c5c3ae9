"""The files of a data set, and how each of them is read.

Preparation calls it after a source is fetched. Only names are used; no file is opened. A folder with several kinds of
file, or with several splits if the job names no split, is an error: the trainer never guesses which data is meant.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from finetune_api.data import DatasetSpec

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.workspace.folders import access_denied

Kind = Literal["json", "jsonl", "csv", "parquet", "arrow", "txt"]
Compression = Literal["gz", "bz2", "xz", "zst"]

SHOWN = 10
ABOUT_DATA = re.compile(
    r"(readme|licen[sc]e|notice|changelog|citation|dataset_infos?|dataset_dict|state)(\.(txt|json))?", re.IGNORECASE
)
"""Files that describe the data. save_to_disk of Hugging Face's datasets writes the last two."""
SHARD = re.compile(r"(?!(data|part|shard|file|chunk)-)(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> words in names of files and folders that stand for it, as on the Hugging Face hub."""


@dataclass(frozen=True)
class DataFile:
    """A file of rows."""

    path: Path
    name: str
    """Path relative to the data set's folder, for messages."""
    kind: Kind
    compression: Compression | None = None


def data_files(path: Path, spec: DatasetSpec) -> list[DataFile]:
    """The files at ``path``, a file or a folder, that belong to the data set's subset and split; sorted by name. Raises
    InvalidSpec, NotFound, AccessDenied."""
    if not path.is_dir():
        return [_single_file(path, spec)]
    names = list(_names(path))
    if not names:
        raise NotFound(f"{spec.source}: the folder is empty. Copy the data files into it, or correct the path")
    files = [file for name in names if not _describes_data(name) and (file := _data_file(path / name, name))]
    if not files:
        raise InvalidSpec(
            f"{spec.source}: the folder has no data file. It has: {_list(names)}. A data file is {_allowed()}"
        )
    selected = _of_split(_of_subset(files, spec), spec)
    if len(kinds := sorted({file.kind for file in selected})) > 1:
        examples = _list([next(file.name for file in selected if file.kind == kind) for kind in kinds])
        raise InvalidSpec(
            f"{spec.source}: the folder has files of several kinds, {', '.join(kinds)} ({examples}). Name a file, or a"
            " folder with a single kind of file"
        )
    return selected


def _single_file(path: Path, spec: DatasetSpec) -> DataFile:
    file = _data_file(path, path.name)
    if file is None:
        extension = f"the extension {path.suffix}" if path.suffix else "no extension"
        raise InvalidSpec(
            f"{spec.source} has {extension}, which the trainer does not read. A data file is {_allowed()}"
        )
    split = _split(path.name)
    if spec.split and split and not _belongs_to(spec.split, file.name, split):
        raise InvalidSpec(
            f"{spec.source} is split {split!r} by its name, and the data set's split is {spec.split!r}. Remove split,"
            " or name the file of that split"
        )
    return file


def _names(folder: Path) -> Iterator[str]:
    """Files below a folder that are not hidden, sorted. Links to folders are not followed, and no link may lead out of
    the folder."""

    def fail(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise access_denied(Path(error.filename), folder.name) from None
        raise error

    names = []
    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    for name in sorted(names):
        if (folder / name).is_symlink() and not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise InvalidSpec(f"{name} is a link to a file outside the data set's folder. Copy the file to its place")
        yield name


def _data_file(path: Path, name: str) -> DataFile | None:
    suffixes = [suffix.removeprefix(".").lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in get_args(Compression) else None
    if not suffixes or suffixes[-1] not in get_args(Kind):
        return None
    return DataFile(path, name, suffixes[-1], compression)  # type: ignore[arg-type]


def _of_subset(files: list[DataFile], spec: DatasetSpec) -> list[DataFile]:
    if spec.subset is None:
        return files
    named = [file for file in files if spec.subset in PurePosixPath(file.name).parts[:-1]]
    if not named and not spec.source.startswith("hf://"):  # a hub's repository defines its subsets by itself
        raise InvalidSpec(
            f"{spec.source} has no folder {spec.subset!r}, which subset names. It has: {_list(files)}. Correct or"
            " remove subset"
        )
    return named or files


def _of_split(files: list[DataFile], spec: DatasetSpec) -> list[DataFile]:
    splits = {file.name: _split(file.name) for file in files}
    known = sorted({split for split in splits.values() if split})
    if spec.split is None and len(known) < 2 and known != ["train"]:
        return files
    wanted = spec.split or "train"
    selected = [file for file in files if _belongs_to(wanted, file.name, splits[file.name])]
    unnamed = [file for file in files if splits[file.name] is None]
    if spec.split is None and (not selected or unnamed):
        others = f", and files of no split: {_list(unnamed)}" if unnamed else ""
        raise InvalidSpec(f"{spec.source} has the splits {', '.join(known)}{others}. Name a split in split")
    if not selected:
        has = f"the splits {', '.join(known)}" if known else f"no splits, only {_list(files)}"
        raise InvalidSpec(f"{spec.source} has no split {wanted!r}. It has {has}")
    return selected


def _belongs_to(wanted: str, name: str, split: str | None) -> bool:
    path = PurePosixPath(name)
    same = next((known for known, words in SPLITS.items() if wanted.lower() in words), wanted)
    return split in (wanted, same) or wanted in path.parts[:-1] or wanted == _stem(path)


def _split(name: str) -> str | None:
    """The split that a file belongs to by its name: ``data/train_sft-00000-of-00003.parquet`` belongs to train_sft,
    ``test/a.jsonl`` and ``my-test.csv`` to test."""
    path = PurePosixPath(name)
    if shard := SHARD.match(_stem(path)):
        split = shard["split"]
        return next((known for known, words in SPLITS.items() if split.lower() in words), split)
    for part in (_stem(path), *reversed(path.parts[:-1])):
        words = re.split(r"[^a-z]+", part.lower())
        for known, meaning in SPLITS.items():
            if any(word in meaning for word in words):
                return known
    return None


def _stem(path: PurePosixPath) -> str:
    if path.suffix[1:].lower() in get_args(Compression):
        path = path.with_suffix("")
    return path.stem


def _describes_data(name: str) -> bool:
    return ABOUT_DATA.fullmatch(PurePosixPath(name).name) is not None


def _allowed() -> str:
    *kinds, last = (f".{kind}" for kind in get_args(Kind))
    return f"{', '.join(kinds)} or {last}, also compressed ({', '.join(f'.{c}' for c in get_args(Compression))})"


def _list(names: list[str] | list[DataFile]) -> str:
    shown = [name if isinstance(name, str) else name.name for name in names]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
