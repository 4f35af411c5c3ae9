"""A manifest vouches for every byte of a checkpoint, itself included."""

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
from finetune_trainer import heartbeat
from finetune_trainer.checkpoints import manifest
from finetune_trainer.checkpoints.manifest import Flawed, Manifest, OtherVersion
from finetune_trainer.workspace import write_json

FILES = {"model.safetensors": b"weights" * 99, "optimizer_0/__0_0.distcp": b"moments" * 50, "stage.json": b"{}"}


def save(folder: Path, step: int, metrics: dict[str, float] | None = None) -> Path:
    """A checkpoint with all that makes one."""
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
        files=manifest.vouch(folder, FILES),
    )
    manifest.write(folder, known)
    return folder


def flaws(folder: Path) -> list[str]:
    try:
        return manifest.verify(folder, manifest.read(folder))
    except Flawed as flaw:
        return [str(flaw)]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3, {"eval_loss": 1.5})
    known = manifest.read(folder)
    assert (known.step, known.samples, known.metrics) == (3, 24, {"eval_loss": 1.5})
    assert known.files["model.safetensors"].size == 693
    assert flaws(folder) == []


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    whole = (folder / manifest.FILE).read_bytes()
    for place in range(len(whole)):
        (folder / manifest.FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Flawed):
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
    ("damage", "said"),
    [
        (cut, "model.safetensors has 692 bytes instead of 693"),
        (lengthen, "model.safetensors has 694 bytes instead of 693"),
        (flip, "model.safetensors is not as it was written"),
        (Path.unlink, "model.safetensors is missing"),
        (replace_by_folder, "model.safetensors can't be read (Is a directory)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    damage(folder / "model.safetensors")
    assert flaws(folder) == [said]


def test_a_file_that_nobody_vouches_for_is_a_flaw(tmp_path: Path) -> None:
    """A library would load it: which files there are decides what is read."""
    folder = save(tmp_path / "checkpoint-3", 3)
    (folder / "optimizer_0" / "more.distcp").touch()
    assert flaws(folder) == ["optimizer_0/more.distcp doesn't belong to it"]


def test_the_manifest_must_be_there_and_of_this_step(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    shutil.copytree(folder, tmp_path / "checkpoint-4")
    assert flaws(tmp_path / "checkpoint-4") == ["it is the checkpoint of step 3"]
    (folder / manifest.FILE).unlink()
    assert flaws(folder) == ["manifest.json is missing"]


def test_ranks_together_read_each_file_once(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    known = manifest.read(folder)
    shares = [manifest.share(known, rank, 2) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(FILES)
    assert shares[0] == ["model.safetensors"]  # as large as all others together, and more
    flip(folder / "stage.json")
    assert [manifest.verify(folder, known, rank, 2) for rank in range(2)] == [
        [],
        ["stage.json is not as it was written"],
    ]


PASSING = [errno.ESTALE, errno.ETIMEDOUT, errno.EIO, errno.ENOTCONN, errno.ESHUTDOWN, errno.EACCES, errno.EMFILE]


@pytest.mark.parametrize("number", PASSING)
@pytest.mark.parametrize("look", ["verify", "read", "complete"])
def test_what_cannot_be_read_now_is_no_flaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, look: str
) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    known = manifest.read(folder)

    def fails(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    target = {
        "verify": "finetune_trainer.checkpoints.manifest.digest_of",
        "read": "pathlib.Path.read_bytes",
        "complete": "pathlib.Path.stat",
    }[look]
    looks: Any = {"verify": partial(manifest.verify, manifest=known)}.get(look) or getattr(manifest, look)
    with monkeypatch.context() as patched:
        patched.setattr(target, fails)
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            looks(folder)
    assert str(folder) in str(raised.value.filename)


def test_files_of_a_folder_that_is_gone_are_not_missing(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    known = manifest.read(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        manifest.verify(folder, known)
    with pytest.raises(FileNotFoundError):
        manifest.read(folder)


def other_version(folder: Path, **fields: object) -> Path:
    """The checkpoint, as another version of the trainer vouches for it."""
    content = json.loads((folder / manifest.FILE).read_bytes()) | fields
    del content[manifest.DIGEST]
    write_json(folder / manifest.FILE, {**content, manifest.DIGEST: manifest._digest(content)})
    return folder


@pytest.mark.parametrize("fields", [{"format": 2}, {"colour": "blue"}, {"samples": None}])
def test_another_version_is_no_flaw(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(OtherVersion):
        manifest.read(other_version(save(tmp_path / "checkpoint-3", 3), **fields))


def test_a_large_file_is_digested_with_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = Mock()
    monkeypatch.setattr(manifest, "CHUNK", 100)
    monkeypatch.setattr(heartbeat, "alive", alive)
    folder = save(tmp_path / "checkpoint-3", 3)
    chunks = sum(-(-len(content) // 100) for content in FILES.values())
    assert alive.call_count == chunks + len(FILES), "each file is brought to disk, too"
    assert flaws(folder) == []
    assert alive.call_count == 2 * chunks + len(FILES)
