"""The cache is cleared of what nobody needs, and of nothing else."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from finetune_trainer.errors import NoSpace
from finetune_trainer.fetch import Places, fetch, prune

from tests.hub import Hub

DAY = 86400.0


def entry(cache: Path, name: str, days: float, *, whole: bool = True) -> Path:
    """Last used so many days ago."""
    made = cache / name
    (made / "files").mkdir(parents=True)
    (made / "files" / "model.safetensors").write_bytes(bytes(1000))
    if whole:
        (made / "manifest.json").write_text("{}")
    for path in (*made.rglob("*"), made):
        os.utime(path, (time.time() - days * DAY,) * 2)
    return made


def named(cache: Path, **places: Path) -> Path:
    file = cache.parent / "jobs" / "one" / "PREPARED.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({k: v.relative_to(cache.parent).as_posix() for k, v in places.items()}))
    return file


def there(cache: Path) -> set[str]:
    return {p.relative_to(cache).as_posix() for p in (*cache.glob("data/*"), *cache.glob("sources/*/*/*"))}


def test_old_ones_go_unless_a_job_names_them(tmp_path: Path) -> None:
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
    assert there(cache) == {"data/new", "data/kept", "sources/hub/m/kept", "sources/hub/m/.staging-new"}


def test_merged_bases_go_and_what_a_job_cannot_make_again_stays(tmp_path: Path) -> None:
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


def test_what_a_job_names_must_be_known(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    named(cache, data=entry(cache, "data/old", 31)).write_text("{")
    prune.prune(cache)
    assert there(cache) == {"data/old"}


def test_a_use_counts(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prune.used(entry(cache, "data/old", 31))
    prune.prune(cache)
    assert there(cache) == {"data/old"}


def test_where_room_is_needed_the_least_recently_used_go_until_there_is_enough(
    hub: Hub, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/small", {"config.json": b"{}", "model.safetensors": bytes(5000)})
    for name, days in (("data/a", 9), ("sources/hub/m/b", 8), ("data/c", 7), ("data/today", 0.5)):
        entry(places.cache, name, days)

    old = there(places.cache)

    def usage(_: object) -> SimpleNamespace:
        return SimpleNamespace(total=10_100, free=10_100 - 2_500 * len(there(places.cache) & old))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    fetch("hf://org/small", "model", places)
    assert there(places.cache) & old == {"data/c", "data/today"}


def test_what_was_used_today_is_not_worth_another_jobs_room(
    hub: Hub, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/small", {"config.json": b"{}", "model.safetensors": bytes(5000)})
    entry(places.cache, "data/today", 0.5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10_000, free=10))
    with pytest.raises(NoSpace, match="needs"):
        fetch("hf://org/small", "model", places)
    assert "data/today" in there(places.cache)
