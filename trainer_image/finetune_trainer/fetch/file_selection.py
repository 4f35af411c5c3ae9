"""Which files of a source are fetched.

Called by `hub` and `s3`. For a model: safetensors weights, configuration and tokenizer. Pickles are never fetched,
because reading them runs code; Python files only if they may run. For data: the files of the split and subset. When
names are ambiguous, more files are fetched rather than fewer: `data.files` chooses among them, and reports what is
missing.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import yaml

from finetune_trainer.errors import InvalidSpec, NotFound

MODEL = (".safetensors", ".json", ".txt", ".jinja", ".model")
DATA = re.compile(r"\.(json|jsonl|csv|parquet|arrow|txt)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
SHOWN = 10
SPLITS = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing", "eval", "evaluation"))


def model_files(names: Iterable[str], uri: str, *, code: bool = False) -> list[str]:
    """With ``code`` also the Python files beside the weights. Raises NotFound when there are no weights, with a list of
    the files that exist."""
    names = sorted(names)
    chosen = [n for n in names if _visible(n) and n.endswith(MODEL) and not n.endswith(".onnx.json")]
    if code:
        chosen += [n for n in names if _visible(n) and n.endswith(".py") and "/" not in n]
    # A repository may have the same weights for other programs in subfolders.
    top = [n for n in chosen if "/" not in n]
    if any(n.endswith(".safetensors") for n in top):
        chosen = [n for n in chosen if "/" not in n or not n.endswith(".safetensors")]
    if not any(n.endswith(".safetensors") for n in chosen):
        raise NotFound(
            f"{uri}: no .safetensors file. Weights in other formats are not loaded, because pickles run code. It has:"
            f" {shorten(names)}. Convert the weights, or name a repository with safetensors"
        )
    return chosen


def data_files(
    names: Iterable[str], uri: str, split: str | None, subset: str | None, card: str | None
) -> dict[str, str]:
    """Name -> its future path. The files that README.md (``card``) declares for a split go into a folder of that name,
    because the names of the files may not contain the split."""
    data = sorted(n for n in names if _visible(n) and DATA.search(n))
    if not data:
        raise NotFound(f"{uri}: no data file (json, jsonl, csv, parquet, arrow, txt). It has: {shorten(sorted(names))}")
    declared = _declared_splits(card, uri, subset) if card else None
    if declared:
        return _select_declared(declared, data, uri, split)
    if subset:
        data = [n for n in data if subset in PurePosixPath(n).parts[:-1]] or data
    return {name: name for name in _select_split(data, split)}


def _visible(name: str) -> bool:
    # "." and ".." are not hidden: names that lead elsewhere are refused later, not left out here.
    return not any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _select_split(data: list[str], split: str | None) -> list[str]:
    wanted = (split or "train").lower()
    words = next((words for words in SPLITS if wanted in words), (wanted,))
    matching = [n for n in data if _contains_word(n, words)]
    if not matching:
        return data
    if split:
        return matching
    other_splits = [words for words in SPLITS if wanted not in words]
    return [n for n in data if n in matching or not any(_contains_word(n, words) for words in other_splits)]


def _contains_word(name: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", name.lower()) for word in words)


def _declared_splits(card: str, uri: str, subset: str | None) -> dict[str, list[str]] | None:
    """Split -> patterns, for the requested subset. None when README.md declares none."""
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    try:
        known = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return None
    configs = known.get("configs") if isinstance(known, dict) else None
    if not isinstance(configs, list):
        return None
    named = {str(c["config_name"]): c for c in configs if isinstance(c, dict) and "config_name" in c}
    if not named:
        return None
    chosen = subset or next((name for name, config in named.items() if config.get("default")), None)
    chosen = chosen or ("default" if "default" in named else next(iter(named)) if len(named) == 1 else None)
    if chosen is None:
        raise InvalidSpec(f"{uri} has several subsets: {', '.join(named)}. Name one of them in subset")
    if chosen not in named:
        raise InvalidSpec(f"{uri} has no subset {chosen!r}. It has: {', '.join(named)}")
    return _patterns(named[chosen])


def _patterns(config: dict[str, Any]) -> dict[str, list[str]] | None:
    files, folder = config.get("data_files"), str(config.get("data_dir") or "").strip("/")
    if files is None:
        return {"": [f"{folder}/*"]} if folder else None
    if isinstance(files, str):
        files = [files]
    patterns: dict[str, list[str]] = {}
    for entry in files if isinstance(files, list) else []:
        split, paths = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for path in paths if isinstance(paths, list) else [paths]:
            patterns.setdefault(str(split), []).append(f"{folder}/{path}" if folder else str(path))
    return patterns or None


def _select_declared(declared: dict[str, list[str]], data: list[str], uri: str, split: str | None) -> dict[str, str]:
    if "" in declared:  # a folder without declared splits
        inside = [n for n in data if fnmatch(n, declared[""][0])]
        return {name: name for name in _select_split(inside, split)}
    chosen = split or ("train" if "train" in declared else next(iter(declared)) if len(declared) == 1 else None)
    if chosen is None or chosen not in declared:
        what = f"no split {chosen!r}" if chosen else "several splits"
        raise InvalidSpec(f"{uri} has {what}. Set split to one of: {', '.join(declared)}")
    patterns = [pattern.replace("**/", "*") for pattern in declared[chosen]]
    matching = [n for n in data if any(fnmatch(n, pattern) for pattern in patterns)]
    if not matching:
        raise NotFound(
            f"{uri}: its README.md declares split {chosen} as {shorten(patterns)}, but the repository has no such file"
        )
    return {name: f"{chosen}/{name}" for name in matching}


def shorten(names: list[str]) -> str:
    """The first names, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) + more) or "nothing"
