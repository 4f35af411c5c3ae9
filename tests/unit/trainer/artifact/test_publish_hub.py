"""Publishing to a hub: one private commit, and never over other files."""

from pathlib import Path

import pytest
from finetune_trainer.artifact.publish import publish
from finetune_trainer.errors import InvalidSpec

from tests.hub import Hub

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "adapter" / "model.safetensors").write_bytes(bytes(5000))
    return folder


def test_publishing_twice_makes_one_private_commit(hub: Hub, artifact: Path) -> None:
    uri = publish("hf://org/tuned", artifact, DIGEST)
    repository = hub.repositories["models/org/tuned"]
    head = repository.branches["main"]
    assert uri == f"hf://org/tuned@{head}"
    assert repository.private
    assert repository.commits[head]["adapter/model.safetensors"] == bytes(5000)
    assert publish("hf://org/tuned", artifact, DIGEST) == uri
    assert repository.branches["main"] == head


def test_another_artifact_is_not_overwritten(hub: Hub, artifact: Path) -> None:
    publish("hf://org/tuned", artifact, DIGEST)
    head = hub.repositories["models/org/tuned"].branches["main"]
    with pytest.raises(InvalidSpec, match=r"sha256:aaa.*sha256:bbb"):
        publish("hf://org/tuned", artifact, OTHER)
    assert hub.repositories["models/org/tuned"].branches["main"] == head


def test_foreign_files_are_not_overwritten(hub: Hub, artifact: Path) -> None:
    hub.add("org/tuned", {"config.json": b"theirs"})
    with pytest.raises(InvalidSpec, match=r"config\.json"):
        publish("hf://org/tuned", artifact, DIGEST)
