"""Pruning removes unused cache entries, and nothing else."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from finetune_trainer.errors import NoSpace
from finetune_trainer.fetch import FetchContext, fetch, prune

from tests.hub import Hub

DAY = 86400.0


def entry(cache: Path, name: str, days: float, *, whole: bool = True) -> Path:
    """A cache entry that was last used so many days ago."""
    created = cache / name
    (created / "files").mkdir(parents=True)
    (created / "files" / "model.safetensors").write_bytes(bytes(1000))
    if whole:
        (created / "manifest.json").write_text("{}")
    for path in (*created.rglob("*"), created):
        os.utime(path, (time.time() - days * DAY,) * 2)
    return created


def named(cache: Path, **entries: Path) -> Path:
    file = cache.parent / "jobs" / "one" / "PREPARED.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({k: v.relative_to(cache.parent).as_posix() for k, v in entries.items()}))
    return file


def remaining(cache: Path) -> set[str]:
    return {p.relative_to(cache).as_posix() for p in (*cache.glob("data/*"), *cache.glob("sources/*/*/*"))}


def test_old_entries_are_removed_unless_a_job_names_them(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, days, whole in [
        ("data/old", 31, True),
        ("data/new", 29, True),
        ("sources/hub/m/old", 31, True),
        ("sources/hub/m/.staging-old", 31, False),
        ("sources/hub/m/.staging-new", 1, False),
        ("data/.staging-old", 31, False),
    ]:
        entry(cache, name, days, whole=whole)
    model, data = entry(cache, "sources/hub/m/kept", 90), entry(cache, "data/kept", 90)
    named(cache, model=model / "files", data=data)
    prune.prune(cache)
    assert remaining(cache) == {"data/new", "data/kept", "sources/hub/m/kept", "sources/hub/m/.staging-new"}


def test_merged_bases_are_removed_and_initial_states_of_pissa_stay(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, days, whole in [
        ("merged/base-old", 31, True),
        ("merged/base-new", 29, True),
        ("merged/.base-left", 31, False),
    ]:
        entry(cache, name, days, whole=whole)
    for name in ("pissa-old.safetensors", ".pissa-left"):
        file = cache / "merged" / name
        file.write_bytes(bytes(10))
        os.utime(file, (time.time() - 31 * DAY,) * 2)
    prune.prune(cache)
    assert {path.name for path in cache.glob("merged/*")} == {"base-new", "pissa-old.safetensors"}


def test_nothing_is_removed_if_a_jobs_entries_are_unknown(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    named(cache, data=entry(cache, "data/old", 31)).write_text("{")
    prune.prune(cache)
    assert remaining(cache) == {"data/old"}


def test_a_used_entry_stays(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prune.mark_used(entry(cache, "data/old", 31))
    prune.prune(cache)
    assert remaining(cache) == {"data/old"}


def test_when_space_is_needed_least_recently_used_entries_are_removed_until_it_is_enough(
    hub: Hub, context: FetchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/small", {"config.json": b"{}", "model.safetensors": bytes(5000)})
    for name, days in (("data/a", 9), ("sources/hub/m/b", 8), ("data/c", 7), ("data/today", 0.5)):
        entry(context.cache, name, days)

    old = remaining(context.cache)

    def usage(_: object) -> SimpleNamespace:
        return SimpleNamespace(total=10_100, free=10_100 - 2_500 * len(remaining(context.cache) & old))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    fetch("hf://org/small", "model", context)
    assert remaining(context.cache) & old == {"data/c", "data/today"}


def test_entries_used_today_stay_even_when_space_is_needed(
    hub: Hub, context: FetchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/small", {"config.json": b"{}", "model.safetensors": bytes(5000)})
    entry(context.cache, "data/today", 0.5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10_000, free=10))
    with pytest.raises(NoSpace, match="needs"):
        fetch("hf://org/small", "model", context)
    assert "data/today" in remaining(context.cache)
