"""Which files a data set consists of, and how each of them is read.

Called by preparation once a source has been fetched. Names only: nothing is opened here. Several kinds of file in one
folder, or several splits of which none is named, are an error: what is trained on is never a guess.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from finetune_api.data import DatasetSpec

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.run import denied

Kind = Literal["json", "jsonl", "csv", "parquet", "arrow", "txt"]
Compression = Literal["gz", "bz2", "xz", "zst"]

SHOWN = 10
ABOUT_DATA = re.compile(
    r"(readme|licen[sc]e|notice|changelog|citation|dataset_infos?|dataset_dict|state)(\.(txt|json))?", re.IGNORECASE
)
"""Files in a folder that describe the data; the last two are those of save_to_disk of Hugging Face's datasets."""
SHARD = re.compile(r"(?!(data|part|shard|file|chunk)-)(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words in file and folder names that mean it, as on the Hugging Face hub."""


@dataclass(frozen=True)
class DataFile:
    """One file of rows."""

    path: Path
    name: str
    """As messages show it: relative to the data set's folder."""
    kind: Kind
    compression: Compression | None = None


def data_files(path: Path, spec: DatasetSpec) -> list[DataFile]:
    """The files at ``path``, a file or a folder, that the data set asks for; sorted by name."""
    if not path.is_dir():
        return [_only(path, spec)]
    names = list(_names(path))
    if not names:
        raise NotFound(f"{spec.source}: the folder is empty")
    found = [file for name in names if not _about_data(name) and (file := _data_file(path / name, name))]
    if not found:
        raise InvalidSpec(f"{spec.source}: the folder has no data file, which is {_allowed()}. It has: {_list(names)}")
    chosen = _of_split(_of_subset(found, spec), spec)
    if len(kinds := sorted({file.kind for file in chosen})) > 1:
        examples = _list([next(file.name for file in chosen if file.kind == kind) for kind in kinds])
        raise InvalidSpec(
            f"{spec.source}: the folder has files of several kinds, {', '.join(kinds)} ({examples}). Name one file, or"
            " a folder with one kind"
        )
    return chosen


def _only(path: Path, spec: DatasetSpec) -> DataFile:
    file = _data_file(path, path.name)
    if file is None:
        raise InvalidSpec(f"{spec.source} ends in {path.suffix or 'no extension'}; a data file is {_allowed()}")
    found = _split(path.name)
    if spec.split and found and not _is(spec.split, file.name, found):
        raise InvalidSpec(f"{spec.source} is split {found!r} by its name, and split is {spec.split!r}: leave split out")
    return file


def _names(folder: Path) -> Iterator[str]:
    """Files below a folder that aren't hidden, sorted. Links to folders are not followed, and none may lead out."""

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise denied(Path(error.filename), folder.name) from None
        raise error

    names = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    for name in sorted(names):
        if (folder / name).is_symlink() and not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise InvalidSpec(f"{name}: a link leads out of the folder; put the file itself there")
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
    if not named and not spec.source.startswith("hf://"):  # a hub's repository says by itself what a subset is
        raise InvalidSpec(f"{spec.source}: has no folder {spec.subset!r}, which subset names. It has: {_list(files)}")
    return named or files


def _of_split(files: list[DataFile], spec: DatasetSpec) -> list[DataFile]:
    splits = {file.name: _split(file.name) for file in files}
    known = sorted({split for split in splits.values() if split})
    if spec.split is None and len(known) < 2 and known != ["train"]:
        return files
    wanted = spec.split or "train"
    chosen = [file for file in files if _is(wanted, file.name, splits[file.name])]
    unnamed = [file for file in files if splits[file.name] is None]
    if spec.split is None and (not chosen or unnamed):
        beside = f" besides {_list(unnamed)}" if unnamed else ""
        raise InvalidSpec(f"{spec.source}: has the splits {', '.join(known)}{beside}; name one of them in split")
    if not chosen:
        has = f"the splits {', '.join(known)}" if known else f"no splits, only {_list(files)}"
        raise InvalidSpec(f"{spec.source}: has no split {wanted!r}; it has {has}")
    return chosen


def _is(wanted: str, name: str, split: str | None) -> bool:
    path = PurePosixPath(name)
    same = next((known for known, words in SPLITS.items() if wanted.lower() in words), wanted)
    return split in (wanted, same) or wanted in path.parts[:-1] or wanted == _stem(path)


def _split(name: str) -> str | None:
    """The split that a file belongs to by its name: ``data/train_sft-00000-of-00003.parquet`` is of train_sft,
    ``test/a.jsonl`` and ``my-test.csv`` are of test."""
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


def _about_data(name: str) -> bool:
    return ABOUT_DATA.fullmatch(PurePosixPath(name).name) is not None


def _allowed() -> str:
    *kinds, last = (f".{kind}" for kind in get_args(Kind))
    return f"{', '.join(kinds)} or {last}, also compressed ({', '.join(f'.{c}' for c in get_args(Compression))})"


def _list(names: list[str] | list[DataFile]) -> str:
    shown = [name if isinstance(name, str) else name.name for name in names]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
