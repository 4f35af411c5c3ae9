"""A workspace that fills up while data is prepared: the cache is pruned once, then the error says what is needed."""

import errno
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_trainer.errors import NoSpace
from finetune_trainer.fetch import FetchContext
from finetune_trainer.prepare import data_cache

GB = 1_000_000_000


@pytest.fixture
def context(tmp_path: Path) -> FetchContext:
    return FetchContext(tmp_path / "cache", {}, tmp_path, "run-1")


class Build:
    """Writes half of its data, and then the disk is full."""

    def __init__(self, full: int, size: data_cache.BuildSize) -> None:
        self.full, self.size, self.began = full, size, 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.began += 1
        assert not list(folder.iterdir())
        with (folder / "train.bin").open("wb") as out:
            out.truncate(GB // 100)
        self.size.read, self.size.total = 30 * GB, 60 * GB
        if self.began <= self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return {"splits": {}}


def entry(context: FetchContext, build: Build) -> Path:
    return data_cache.get_or_build(context, "key", build, lambda: None, build.size)[0]


def old(context: FetchContext) -> Path:
    """An entry that was not used for days."""
    made = context.cache / "data" / "old"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    os.utime(made / "manifest.json", (time.time() - 9 * 86400,) * 2)
    return made


def test_the_cache_is_pruned_once_and_the_data_built_again(
    context: FetchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    unused = old(context)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=GB, free=0 if unused.exists() else GB))
    build = Build(1, data_cache.BuildSize())
    assert (entry(context, build) / "train.bin").exists()
    assert build.began == 2
    assert not unused.exists()


@pytest.mark.parametrize(("free", "began"), [(0, 1), (GB, 2)])
def test_the_error_says_how_much_space_is_needed(
    context: FetchContext, monkeypatch: pytest.MonkeyPatch, free: int, began: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=GB, free=free))
    build = Build(9, data_cache.BuildSize(copies=2))
    said = rf"needs about 0\.04 GB .* {free // GB}\.00 GB free of 1\.00 GB \(0\.01 GB .* after 30\.00 of 60\.00 GB"
    with pytest.raises(NoSpace, match=said):
        entry(context, build)
    assert build.began == began
    assert not list((context.cache / "data").glob("*key*/train.bin"))
