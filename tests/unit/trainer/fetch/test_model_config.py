"""The config of a model is fetched alone: from a hub, or found on a volume."""

from pathlib import Path

import pytest
from finetune_trainer.errors import NotFound
from finetune_trainer.fetch.model_config import fetch_config

from tests.hub import Hub

MODEL = {"config.json": b'{"a": 1}', "model.safetensors": b"x" * 1000, "inner/config.json": b'{"b": 1}'}


@pytest.mark.parametrize(("path", "content"), [("", b'{"a": 1}'), ("/inner", b'{"b": 1}')])
def test_of_a_hub_only_the_config_is_fetched(hub: Hub, tmp_path: Path, path: str, content: bytes) -> None:
    hub.add("org/small", MODEL)
    folder = fetch_config(f"hf://org/small{path}", {}, tmp_path)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert (folder / "config.json").read_bytes() == content
    assert {name.rpartition("/")[2] for name, _ in hub.ranges} == {"config.json"}


def test_a_repository_without_a_config_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/small", {"model.safetensors": b"x"})
    with pytest.raises(NotFound, match=r"hf://org/small: the repository has no config\.json"):
        fetch_config("hf://org/small", {}, tmp_path)


def test_on_a_volume_the_folder_itself_is_read(tmp_path: Path) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    volumes = {"models": tmp_path / "models"}
    with pytest.raises(NotFound, match=r"has no config\.json"):
        fetch_config("pvc://models/base", volumes, tmp_path)
    (tmp_path / "models" / "base" / "config.json").write_text("{}")
    assert fetch_config("pvc://models/base", volumes, tmp_path) == tmp_path / "models" / "base"
