"""Volumes and ConfigMaps: located, confined to the volume, and read once for their digest."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import NotFound
from finetune_trainer.fetch import FetchContext, digests, fetch


@pytest.fixture
def mounted(context: FetchContext, tmp_path: Path) -> FetchContext:
    volume = tmp_path / "volume"
    (volume / "rows").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl"):
        (volume / "rows" / name).write_text(name)
        os.utime(volume / "rows" / name, (1_000_000, 1_000_000))
    (context.config_maps / "small" / "..data").mkdir(parents=True)
    (context.config_maps / "small" / "..data" / "rows.jsonl").write_text("{}")
    (context.config_maps / "small" / "rows.jsonl").symlink_to("..data/rows.jsonl")
    return dataclasses.replace(context, volumes={"data": volume})


def test_a_key_of_a_config_map_is_a_file(mounted: FetchContext) -> None:
    assert fetch("configmap://small/rows.jsonl", "data", mounted).path.read_text() == "{}"
    with pytest.raises(NotFound, match="ConfigMap 'other' is not mounted"):
        fetch("configmap://other/rows.jsonl", "data", mounted)
    with pytest.raises(NotFound, match=r"configmap://small/ has: .*rows\.jsonl"):
        fetch("configmap://small/none", "data", mounted)


def test_a_pipe_is_refused_instead_of_waited_for(mounted: FetchContext) -> None:
    for name in ("pipe", "rows/pipe"):
        os.mkfifo(mounted.volumes["data"] / name)
    for uri in ("pvc://data/pipe", "pvc://data/rows"):
        with pytest.raises(NotFound, match="pipe is a pipe or a device"):
            fetch(uri, "data", mounted)


def test_a_link_out_of_the_volume_is_refused(mounted: FetchContext, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (mounted.volumes["data"] / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound, match="leads out of the volume"):
        fetch("pvc://data/link", "data", mounted)
    (mounted.volumes["data"] / "rows" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound, match="link is a link out of the volume"):
        fetch("pvc://data/rows", "data", mounted)


def test_a_second_job_reads_only_what_changed(mounted: FetchContext, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = digests._sha256

    def recorded(file: Path, *rest: Any) -> str:
        read.append(file.name)
        return real(file, *rest)

    monkeypatch.setattr(digests, "_sha256", recorded)
    first = fetch("pvc://data/rows", "data", mounted)
    assert fetch("pvc://data/rows", "data", mounted) == first
    assert read == ["a.jsonl", "b.jsonl"]
    (mounted.volumes["data"] / "rows" / "b.jsonl").write_text("B.JSONL")
    assert fetch("pvc://data/rows", "data", mounted).digest != first.digest
    assert read == ["a.jsonl", "b.jsonl", "b.jsonl"]
