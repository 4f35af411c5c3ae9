"""A workspace that fills up while data is prepared: it is cleared once, and else the message says what is needed."""

import errno
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_trainer.errors import NoSpace
from finetune_trainer.fetch import Places
from finetune_trainer.prepare import cache

GB = 1_000_000_000


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "cache", {}, tmp_path, "run-1")


class Build:
    """Writes half of its data, where there is no room for more."""

    def __init__(self, full: int, read: cache.Input) -> None:
        self.full, self.read, self.began = full, read, 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.began += 1
        assert not list(folder.iterdir())
        with (folder / "train.bin").open("wb") as out:
            out.truncate(GB // 100)
        self.read.size, self.read.total = 30 * GB, 60 * GB
        if self.began <= self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return {"splits": {}}


def entry(places: Places, build: Build) -> Path:
    return cache.entry(places, "key", build, lambda: None, build.read)[0]


def old(places: Places) -> Path:
    """What nobody has used for days."""
    made = places.cache / "data" / "old"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    os.utime(made / "manifest.json", (time.time() - 9 * 86400,) * 2)
    return made


def test_room_is_made_once_and_the_data_built_again(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    unused = old(places)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=GB, free=0 if unused.exists() else GB))
    build = Build(1, cache.Input())
    assert (entry(places, build) / "train.bin").exists()
    assert build.began == 2
    assert not unused.exists()


@pytest.mark.parametrize(("free", "began"), [(0, 1), (GB, 2)])
def test_where_there_is_none_it_says_what_is_needed(
    places: Places, monkeypatch: pytest.MonkeyPatch, free: int, began: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=GB, free=free))
    build = Build(9, cache.Input(copies=2))
    said = rf"needs about 0\.04 GB .* {free // GB}\.00 GB free of 1\.00 GB \(0\.01 GB .* after 30\.00 of 60\.00 GB"
    with pytest.raises(NoSpace, match=said):
        entry(places, build)
    assert build.began == began
    assert not list((places.cache / "data").glob("*key*/train.bin"))
