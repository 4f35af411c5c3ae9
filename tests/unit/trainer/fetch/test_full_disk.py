"""A disk that is really full: a small tmpfs. Only root can mount it."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.errors import NoSpace
from finetune_trainer.fetch import FetchContext, fetch, source_cache
from finetune_trainer.fetch.lease import lease

from tests.hub import Hub

MIB = 1 << 20
MODEL = {"config.json": b"{}", "model.safetensors": bytes(6 * MIB)}

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[FetchContext]:
    """A workspace of 8 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(mount)], check=False)
    if done.returncode:
        pytest.skip("this container may not mount")
    yield FetchContext(mount / "cache", {}, tmp_path, "run-1")
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_no_space_is_raised_before_anything_is_fetched(hub: Hub, small: FetchContext) -> None:
    commit = hub.add("org/small", MODEL)
    filler = small.cache.parent / "filler"
    filler.write_bytes(bytes(4 * MIB))
    with pytest.raises(NoSpace, match=r"needs 0\.01 GB more in the workspace, which has 0\.00 GB free of 0\.01 GB"):
        fetch(f"hf://org/small@{commit}", "model", small)
    assert not [name for name, _ in hub.ranges if name == "model.safetensors"]
    filler.unlink()
    assert fetch(f"hf://org/small@{commit}", "model", small).path.is_dir()


def test_a_disk_that_fills_up_during_a_fetch_keeps_no_incomplete_entry(
    hub: Hub, small: FetchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("org/small", MODEL)
    filler = small.cache.parent / "filler"
    check_space = source_cache._check_space

    def then_another_process_writes(*given: object) -> None:
        check_space(*given)  # type: ignore[arg-type]
        filler.write_bytes(bytes(4 * MIB))

    with monkeypatch.context() as patch:
        patch.setattr(source_cache, "_check_space", then_another_process_writes)
        with pytest.raises(NoSpace, match="is full"):
            fetch(f"hf://org/small@{commit}", "model", small)
    assert not list(small.cache.rglob("manifest.json"))
    filler.unlink()
    fetched = fetch(f"hf://org/small@{commit}", "model", small)
    assert (fetched.path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_lease_is_released_on_a_full_disk(small: FetchContext) -> None:
    lock, filler = small.cache / "locks" / "one", small.cache.parent / "filler"
    with lease(lock, "run-1", lambda: None), pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(9 * MIB))
    filler.unlink()
    checks = itertools.count()

    def waits() -> None:
        assert not next(checks), "it waits although the lease was released"

    with lease(lock, "run-2", waits):
        pass
