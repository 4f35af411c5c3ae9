"""A manifest detects any change to a checkpoint, including changes to itself."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from finetune_trainer.checkpoints import manifest
from finetune_trainer.checkpoints.manifest import BrokenCheckpoint, Manifest, OtherFormat
from finetune_trainer.runtime import heartbeat
from finetune_trainer.workspace.files import write_json

FILES = {"model.safetensors": b"weights" * 99, "optimizer_0/__0_0.distcp": b"moments" * 50, "stage.json": b"{}"}


def save(folder: Path, step: int, metrics: dict[str, float] | None = None) -> Path:
    """A complete checkpoint."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    known = Manifest(
        step=step,
        samples=8 * step,
        world=2,
        micro_batch=2,
        global_batch=8,
        parallelism="ddp",
        dtypes=["torch.float32"],
        versions={"torch": "2"},
        job="sha256:1",
        attempt=1,
        run="r1",
        time="2026-01-01T00:00:00Z",
        metrics=metrics or {},
        files=manifest.hash_files(folder, FILES),
    )
    manifest.write(folder, known)
    return folder


def flaws(folder: Path) -> list[str]:
    try:
        return manifest.verify(folder, manifest.read(folder))
    except BrokenCheckpoint as flaw:
        return [str(flaw)]


def test_a_written_manifest_is_read_back(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3, {"eval_loss": 1.5})
    known = manifest.read(folder)
    assert (known.step, known.samples, known.metrics) == (3, 24, {"eval_loss": 1.5})
    assert known.files["model.safetensors"].size == 693
    assert flaws(folder) == []


def test_any_changed_byte_of_the_manifest_is_a_flaw(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    whole = (folder / manifest.FILE).read_bytes()
    for place in range(len(whole)):
        (folder / manifest.FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BrokenCheckpoint):
            manifest.read(folder)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def flip(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 128]) + content[1:])


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        (cut, "model.safetensors has 692 bytes instead of 693"),
        (lengthen, "model.safetensors has 694 bytes instead of 693"),
        (flip, "model.safetensors is not as it was written"),
        (Path.unlink, "model.safetensors is missing"),
        (replace_by_folder, "model.safetensors can't be read (Is a directory)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None], flaw: str) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    damage(folder / "model.safetensors")
    assert flaws(folder) == [flaw]


def test_an_added_file_is_a_flaw(tmp_path: Path) -> None:
    """A library would load it: it chooses by the files that exist."""
    folder = save(tmp_path / "checkpoint-3", 3)
    (folder / "optimizer_0" / "more.distcp").touch()
    assert flaws(folder) == ["optimizer_0/more.distcp does not belong to it"]


def test_a_missing_manifest_and_one_of_another_step_are_flaws(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    shutil.copytree(folder, tmp_path / "checkpoint-4")
    assert flaws(tmp_path / "checkpoint-4") == ["it is the checkpoint of step 3"]
    (folder / manifest.FILE).unlink()
    assert flaws(folder) == ["manifest.json is missing"]


def test_ranks_together_read_each_file_once(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    known = manifest.read(folder)
    shares = [manifest.files_of_rank(known, rank, 2) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(FILES)
    assert shares[0] == ["model.safetensors"]  # larger than all other files together
    flip(folder / "stage.json")
    assert [manifest.verify(folder, known, rank, 2) for rank in range(2)] == [
        [],
        ["stage.json is not as it was written"],
    ]


PASSING = [errno.ESTALE, errno.ETIMEDOUT, errno.EIO, errno.ENOTCONN, errno.ESHUTDOWN, errno.EACCES, errno.EMFILE]


@pytest.mark.parametrize("number", PASSING)
@pytest.mark.parametrize("function", ["verify", "read", "read_complete"])
def test_a_temporarily_unreadable_file_is_no_flaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, function: str
) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    known = manifest.read(folder)

    def fails(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    target = {
        "verify": "finetune_trainer.checkpoints.manifest.hash_stream",
        "read": "pathlib.Path.read_bytes",
        "read_complete": "pathlib.Path.stat",
    }[function]
    call: Any = {"verify": partial(manifest.verify, manifest=known)}.get(function) or getattr(manifest, function)
    with monkeypatch.context() as patched:
        patched.setattr(target, fails)
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            call(folder)
    assert str(folder) in str(raised.value.filename)


def test_a_missing_folder_is_an_error_and_no_flaw(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    known = manifest.read(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        manifest.verify(folder, known)
    with pytest.raises(FileNotFoundError):
        manifest.read(folder)


def other_version(folder: Path, **fields: object) -> Path:
    """The checkpoint with a manifest of another version of the trainer."""
    content = json.loads((folder / manifest.FILE).read_bytes()) | fields
    del content[manifest.DIGEST]
    write_json(folder / manifest.FILE, {**content, manifest.DIGEST: manifest._digest_of_content(content)})
    return folder


@pytest.mark.parametrize("fields", [{"format": 2}, {"colour": "blue"}, {"samples": None}])
def test_a_manifest_of_another_version_is_no_flaw(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(OtherFormat):
        manifest.read(other_version(save(tmp_path / "checkpoint-3", 3), **fields))


def test_hashing_a_large_file_sends_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = Mock()
    monkeypatch.setattr(manifest, "CHUNK", 100)
    monkeypatch.setattr(heartbeat, "refresh", alive)
    folder = save(tmp_path / "checkpoint-3", 3)
    chunks = sum(-(-len(content) // 100) for content in FILES.values())
    assert alive.call_count == chunks + len(FILES), "also once after each file is flushed to disk"
    assert flaws(folder) == []
    assert alive.call_count == 2 * chunks + len(FILES)
