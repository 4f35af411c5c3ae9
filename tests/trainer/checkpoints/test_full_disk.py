"""The workspace fills up, becomes read-only or disappears while a run trains. The run ends with that reason, saved
checkpoints stay intact, and with free space the next attempt resumes and reaches the same weights."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from finetune_trainer.checkpoints import manifest
from finetune_trainer.workspace.files import digest_folder
from finetune_trainer.workspace.storage import NEARLY_FULL

from tests.trainer.support import tiny
from tests.trainer.support.attempt import Mark, Series
from tests.trainer.support.forge import Child, Forge

STEPS = 48
"""Enough that the run is not over before the test, which hears of the third save, disturbs it."""
TRAINING = {"maxSteps": STEPS, "globalBatchSize": 4, "microBatchSize": 2}
KEEP_ALL = {"everySteps": 1, "keep": STEPS}
"""Otherwise deleting old checkpoints would free space for new checkpoints."""
SIZE = 72 << 20
FILL_STEP = NEARLY_FULL // 4


def shell(command: str) -> int:
    """In a child of the forge, which may mount."""
    return subprocess.run(command, shell=True, check=False).returncode


class Disk:
    """A file system of its own, mounted below ``folder`` and once more as the workspace."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        self._forge, self._log = forge, folder / "disk.log"
        self.workspace, self.kept = folder / "job" / "workspace", folder / "disk"
        self.workspace.mkdir(parents=True)
        self.kept.mkdir()
        self.do(f"mount -t tmpfs -o size={SIZE} none {self.kept} && mount --bind {self.kept} {self.workspace}")

    def do(self, command: str) -> None:
        """Until it succeeds: a file system that is being written can't become read-only."""
        for _ in range(100):
            if self._forge.start(shell, command, log=self._log).wait() == 0:
                return
        raise AssertionError(f"{command}: this test has to mount\n{self._log.read_text()}")

    def fill(self, room: int) -> None:
        """Fill the disk until so many bytes are free. Step by step: an allocation that fails gives back what it took,
        and a run whose write fails meanwhile must find the disk full when it asks why."""
        with (self._forge.seen(self.kept) / "ballast").open("ab") as ballast:
            while (free := self._free() - room) > 0:
                with suppress(OSError):  # the run has taken some of it meanwhile
                    os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, min(free, FILL_STEP))

    def empty(self) -> None:
        (self._forge.seen(self.kept) / "ballast").unlink()

    def _free(self) -> int:
        stat = os.statvfs(self._forge.seen(self.kept))
        return stat.f_bavail * stat.f_frsize


@pytest.fixture
def disk(forge: Forge, tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(forge, tmp_path)
    yield disk
    disk.do(f"umount {disk.kept}; umount {disk.workspace}; true")


@pytest.fixture(scope="module")
def expected(forge: Forge, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Weights of an undisturbed run with two ranks."""
    root = tmp_path_factory.mktemp("expected")
    (root / "models").symlink_to(model.parent)
    tiny.save_rows(root / "data" / "rows.jsonl")
    whole = Series(forge, root, root / "whole", tiny.job(training=TRAINING))
    assert whole.run(world=2) == 0, whole.log
    return whole.weights


def after_third_save(child: Child, happens: Callable[[], None]) -> int:
    """How a run ends that is disturbed while it trains."""
    for message in child.listen():
        if isinstance(message, Mark) and (message.what, message.step) == ("saved", 3):
            happens()
    assert child.code is not None
    return child.code


def placed(series: Series) -> dict[int, str]:
    """Step -> digest of every checkpoint. All of them verify."""
    digests = {}
    for place in series.home.glob("checkpoints/*/checkpoint-*"):
        known = manifest.read(place)
        assert manifest.verify(place, known) == []
        digests[known.step] = digest_folder(place)[0]
    return digests


# Too little for the weights; for the optimizer's state, which is written after them.
@pytest.mark.parametrize("room", [24 << 10, pytest.param(160 << 10, marks=pytest.mark.sweep)])
def test_a_full_disk_ends_the_run_and_harms_no_checkpoint(
    forge: Forge, root: Path, tmp_path: Path, disk: Disk, expected: dict[str, bytes], room: int
) -> None:
    series = Series(forge, root, tmp_path / "job", tiny.job(training=TRAINING, checkpoints=KEEP_ALL))
    assert after_third_save(series.start(world=2), lambda: disk.fill(room)) == 73, series.log
    assert series.result.reason == "NoSpace"
    assert str(disk.workspace) in series.result.message
    assert "room" in series.result.message
    assert not list(series.home.glob("checkpoints/*/.*")), "what couldn't be written whole still takes room"

    before = placed(series)
    assert sorted(before) == list(range(1, max(mark.step for mark in series.events(Mark) if mark.what == "saved") + 1))
    disk.empty()
    assert series.run(world=2) == 0, series.log
    assert series.first_steps == [1, max(before) + 1]
    assert {step: placed(series)[step] for step in before} == before
    assert series.weights == expected


READ_ONLY = "mount -o remount,bind,ro {workspace}"


# Found out by the log, which is written each step, or else by the next save.
@pytest.mark.parametrize(
    ("goes", "comes", "words", "log_every"),
    [
        (READ_ONLY, "mount -o remount,bind,rw {workspace}", "Read-only", 1),
        pytest.param(READ_ONLY, "mount -o remount,bind,rw {workspace}", "Read-only", STEPS, marks=pytest.mark.sweep),
        pytest.param(
            "umount -l {workspace}", "mount --bind {kept} {workspace}", "No such file", 1, marks=pytest.mark.sweep
        ),
        ("mv {kept}/jobs {kept}/away", "rm -rf {kept}/jobs && mv {kept}/away {kept}/jobs", "No such file", STEPS),
    ],
    ids=["read-only log", "read-only checkpoints", "unmounted", "moved"],
)
def test_a_workspace_that_goes_away_is_named(
    forge: Forge,
    root: Path,
    tmp_path: Path,
    disk: Disk,
    expected: dict[str, bytes],
    goes: str,
    comes: str,
    words: str,
    log_every: int,
) -> None:
    job = tiny.job(training={**TRAINING, "logEverySteps": log_every}, checkpoints=KEEP_ALL)
    series = Series(forge, root, tmp_path / "job", job)
    goes, comes = (command.format(workspace=disk.workspace, kept=disk.kept) for command in (goes, comes))
    assert after_third_save(series.start(world=2), lambda: disk.do(goes)) == 74, series.log
    assert series.result.reason == "WorkspaceUnusable"
    assert str(disk.workspace) in series.result.message
    assert words in series.result.message
    if words != "Read-only":
        here = forge.seen(disk.workspace) / "jobs"
        assert not [path for path in here.rglob("*") if path.is_file()], "it trained into a folder that nobody keeps"

    disk.do(comes)
    before = placed(series)
    assert max(before) >= 3
    assert series.run(world=2) == 0, series.log
    assert series.first_steps == [1, max(before) + 1]
    assert {step: placed(series)[step] for step in before} == before
    assert series.weights == expected
