"""A disk that is really full: a small tmpfs, which only root can mount."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.errors import NoSpace
from finetune_trainer.fetch import Places, fetch, store
from finetune_trainer.fetch.lease import lease

from tests.hub import Hub

MIB = 1 << 20
MODEL = {"config.json": b"{}", "model.safetensors": bytes(6 * MIB)}

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Places]:
    """A workspace of 8 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(mount)], check=False)
    if done.returncode:
        pytest.skip("this container may not mount")
    yield Places(mount / "cache", {}, tmp_path, "run-1")
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_what_does_not_fit_is_told_before_it_is_fetched(hub: Hub, small: Places) -> None:
    commit = hub.add("org/small", MODEL)
    filler = small.cache.parent / "filler"
    filler.write_bytes(bytes(4 * MIB))
    with pytest.raises(NoSpace, match=r"needs 0\.01 GB more in the workspace, which has 0\.00 GB free of 0\.01 GB"):
        fetch(f"hf://org/small@{commit}", "model", small)
    assert not [name for name, _ in hub.ranges if name == "model.safetensors"]
    filler.unlink()
    assert fetch(f"hf://org/small@{commit}", "model", small).path.is_dir()


def test_a_disk_that_fills_up_meanwhile_keeps_no_half_entry(
    hub: Hub, small: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("org/small", MODEL)
    filler = small.cache.parent / "filler"
    look = store._check_space

    def then_somebody_writes(*given: object) -> None:
        look(*given)  # type: ignore[arg-type]
        filler.write_bytes(bytes(4 * MIB))

    with monkeypatch.context() as patch:
        patch.setattr(store, "_check_space", then_somebody_writes)
        with pytest.raises(NoSpace, match="is full"):
            fetch(f"hf://org/small@{commit}", "model", small)
    assert not list(small.cache.rglob("manifest.json"))
    filler.unlink()
    fetched = fetch(f"hf://org/small@{commit}", "model", small)
    assert (fetched.path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_lock_is_given_back_on_a_full_disk_too(small: Places) -> None:
    lock, filler = small.cache / "locks" / "one", small.cache.parent / "filler"
    with lease(lock, "run-1", lambda: None), pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(9 * MIB))
    filler.unlink()
    looks = itertools.count()

    def waits() -> None:
        assert not next(looks), "it waits for the one that gave it back"

    with lease(lock, "run-2", waits):
        pass
