"""Data sets of LLaMA-Factory, as dataset_info.json describes them, and what they are in a FineTuneJob."""

import json
from pathlib import Path
from typing import Any

from finetune_cli.importing.notes import Fate, Imported
from finetune_cli.importing.table import plain, row
from finetune_cli.problem import Problem

Info = dict[str, Any]
MEDIA = ("images", "videos", "audios")
PREFERENCES = ("rm", "dpo")
REPOSITORY = "hf://llamafactory/demo_data"
"""Where the maintainers of LLaMA-Factory keep the files that come with it."""


def read_info(path: Path) -> Info:
    """A dataset_info.json."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(f"{path} cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise Problem(f"{path} is no mapping of data sets.")
    return loaded


def names(value: Any) -> list[str]:
    """`dataset: a,b`, or a list."""
    return [part.strip() for part in (value if isinstance(value, list) else str(value).split(",")) if str(part).strip()]


def convert(out: Imported, name: str, stage: str, info: Info, folder: str, claim: str) -> dict[str, Any] | None:
    """A data set by its name. None if it cannot be used; the note says why."""
    entry = info.get(name)
    if entry is None:
        guess = {"source": _file(f"{name}.json", folder, claim), "format": usual_format(stage)}
        out.note(
            Fate.CHANGED,
            f"dataset {name}",
            f"its entry of dataset_info.json is unknown, so source {guess['source']} and format {guess['format']} are"
            " guessed. Give the file: --dataset-info",
        )
        return guess
    if media := [key for key in MEDIA if key in (entry.get("columns") or {})]:
        out.note(Fate.LEFT_OUT, f"dataset {name}", f"its rows have {media[0]}, and only text is trained")
        return None
    source = _source(entry, folder, claim)
    if source is None:
        key = next((key for key in entry if key.endswith("_url")), "its place")
        known = row(key, of_data_set=True)
        out.note(Fate.LEFT_OUT, f"dataset {name}", plain(known.note) if known else f"{key} is not supported")
        return None
    found: dict[str, Any] = {"source": source, "format": _format(entry, stage)}
    _copy_names(out, name, entry, found, stage)
    for key in ("subset", "split"):
        if entry.get(key):
            found[key] = entry[key]
    if entry.get("num_samples"):
        found["maxSamples"] = int(entry["num_samples"])
    for key in sorted(set(entry) - KNOWN):
        known = row(key, of_data_set=True)
        out.note(Fate.LEFT_OUT, f"{key} of data set {name}", plain(known.note) if known else "it is unknown")
    return found


KNOWN = {
    *("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name", "folder", "formatting", "ranking"),
    *("columns", "tags", "subset", "split", "num_samples"),
}


OPTIONAL = ("system", "history", "tools")
"""Columns that LLaMA-Factory reads only if they are named."""


def usual_format(stage: str) -> str:
    """The format of a data set without an entry."""
    return "text" if stage == "pt" else "preference" if stage in PREFERENCES else "kto" if stage == "kto" else "alpaca"


def _source(entry: Info, folder: str, claim: str) -> str | None:
    if entry.get("hf_hub_url"):
        return f"hf://{entry['hf_hub_url']}" + (f"/{entry['folder']}" if entry.get("folder") else "")
    if entry.get("file_name"):
        return _file(entry["file_name"], folder, claim)
    cloud = str(entry.get("cloud_file_name") or "")
    return cloud if cloud.startswith("s3://") else None


def _file(name: str, folder: str, claim: str) -> str:
    if folder.startswith("REMOTE:"):
        return f"hf://{folder.removeprefix('REMOTE:')}/{name}"
    return f"pvc://{claim}/{name.lstrip('./')}"


def _format(entry: Info, stage: str) -> str:
    columns = entry.get("columns") or {}
    if stage == "pt":
        return "text"
    if "kto_tag" in columns:
        return "kto"
    if entry.get("ranking"):
        return "preference"
    return str(entry.get("formatting") or "alpaca")


def _copy_names(out: Imported, name: str, entry: Info, found: dict[str, Any], stage: str) -> None:
    """Columns and tags that the format here reads."""
    from finetune_api.data import READ_BY

    columns = dict(entry.get("columns") or {})
    if stage == "pt":
        text = columns.get("prompt", "instruction")
        columns = {} if text == "text" else {"text": text}
    if "kto_tag" in columns:
        columns["label"] = columns.pop("kto_tag")
    form = found["format"]
    kept = {key: value for key, value in columns.items() if form in READ_BY.get(key, ())}
    if kept:
        found["columns"] = kept
    for key in sorted(set(columns) - set(kept)):
        out.note(Fate.NOT_NEEDED, f"column {key} of data set {name}", f"format {form} does not read it")
    if unnamed := [key for key in OPTIONAL if form in READ_BY[key] and key not in columns]:
        out.note(
            Fate.CHANGED,
            f"columns of data set {name}",
            f"LLaMA-Factory reads {' and '.join(unnamed)} of a row only where columns names them. Here rows that have"
            " them are trained with them. Remove them from the rows if that is not wanted",
        )
    tags = {key.removesuffix("_tag"): value for key, value in (entry.get("tags") or {}).items()}
    if tags and form in READ_BY["messages"]:
        found["tags"] = tags
