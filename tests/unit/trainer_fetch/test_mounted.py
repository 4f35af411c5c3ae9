"""Volumes and ConfigMaps: found, kept inside, and read once for their digest."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import NotFound
from finetune_trainer.fetch import Places, digest, fetch


@pytest.fixture
def mounted(places: Places, tmp_path: Path) -> Places:
    volume = tmp_path / "volume"
    (volume / "rows").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl"):
        (volume / "rows" / name).write_text(name)
        os.utime(volume / "rows" / name, (1_000_000, 1_000_000))
    (places.config_maps / "small" / "..data").mkdir(parents=True)
    (places.config_maps / "small" / "..data" / "rows.jsonl").write_text("{}")
    (places.config_maps / "small" / "rows.jsonl").symlink_to("..data/rows.jsonl")
    return dataclasses.replace(places, volumes={"data": volume})


def test_a_config_maps_key(mounted: Places) -> None:
    assert fetch("configmap://small/rows.jsonl", "data", mounted).path.read_text() == "{}"
    with pytest.raises(NotFound, match="ConfigMap 'other' is not mounted"):
        fetch("configmap://other/rows.jsonl", "data", mounted)
    with pytest.raises(NotFound, match=r"configmap://small/ has: .*rows\.jsonl"):
        fetch("configmap://small/none", "data", mounted)


def test_a_link_out_of_the_volume(mounted: Places, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (mounted.volumes["data"] / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound, match="leads out of the volume"):
        fetch("pvc://data/link", "data", mounted)
    (mounted.volumes["data"] / "rows" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound, match="link is a link out of the volume"):
        fetch("pvc://data/rows", "data", mounted)


def test_a_second_job_reads_only_what_changed(mounted: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = digest._sha256

    def noted(file: Path, *rest: Any) -> str:
        read.append(file.name)
        return real(file, *rest)

    monkeypatch.setattr(digest, "_sha256", noted)
    first = fetch("pvc://data/rows", "data", mounted)
    assert fetch("pvc://data/rows", "data", mounted) == first
    assert read == ["a.jsonl", "b.jsonl"]
    (mounted.volumes["data"] / "rows" / "b.jsonl").write_text("B.JSONL")
    assert fetch("pvc://data/rows", "data", mounted).digest != first.digest
    assert read == ["a.jsonl", "b.jsonl", "b.jsonl"]
