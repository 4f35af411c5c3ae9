"""Whose a job's directory is: every set of files that a run can leave there, of this job and of another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from pathlib import Path

import pytest
from finetune_api.status import Artifact, Result
from finetune_trainer.errors import WorkspaceOccupied
from finetune_trainer.workspace import fencing, files
from finetune_trainer.workspace.folders import Folders

from tests.unit.trainer.workspace.test_fencing import JOB, facts, folders, job

OTHER = job(learningRate=0.5)


def reports(home: Folders, _digest: str) -> None:
    home.reports.mkdir(parents=True)
    (home.reports / "prepare.json").write_text("{}")


def prepared(home: Folders, digest: str) -> None:
    files.write_json(home.job / "PREPARED.json", {"digest": digest})


def fence(home: Folders, digest: str) -> None:
    fencing.Fence("u7", 3, "r7", digest).write(home)


def checkpoint(home: Folders, _digest: str) -> None:
    (home.checkpoints / "3-r7" / "checkpoint-5").mkdir(parents=True)


def artifact(home: Folders, _digest: str) -> None:
    home.artifact.mkdir()
    (home.artifact / "adapter.safetensors").write_bytes(b"weights")


def result(home: Folders, digest: str) -> None:
    """It describes the artifact above, which may be removed."""
    made = home.job / "made"
    made.mkdir()
    (made / "adapter.safetensors").write_bytes(b"weights")
    found = Artifact(uri="pvc://claim/artifact", kind="adapter", digest=files.digest_folder(made)[0], size_bytes=7)
    (made / "adapter.safetensors").unlink()
    made.rmdir()
    ended = Result(kind="train", attempt=3, exit_code=0, reason="Completed", message="", artifact=found)
    files.write_json(home.job / fencing.RESULT, {"digest": digest, "result": ended.to_dict()})


LEAVE = (reports, prepared, fence, checkpoint, artifact, result)
LEFT = [set(left) for left in chain.from_iterable(combinations(LEAVE, count) for count in range(len(LEAVE) + 1))]


def allowed(left: set[Callable[[Folders, str], None]], same: bool) -> bool:
    """The rule in words: what was trained is never taken from another job, or from a job that nobody knows."""
    if result in left and not same:
        return False
    if result in left and artifact in left:
        return True
    trained = bool({checkpoint, artifact} & left)
    return not trained or (fence in left and same)


def content(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def cases() -> Iterator[object]:
    for left in LEFT:
        for digest in (JOB.digest, OTHER.digest):
            whose = "this" if digest == JOB.digest else "another"
            yield pytest.param(left, digest, id="-".join([whose, *sorted(leave.__name__ for leave in left)]))


@pytest.mark.parametrize(("left", "digest"), cases())
def test_results_of_another_job_are_found_before_anything_is_written(
    tmp_path: Path, left: set[Callable[[Folders, str], None]], digest: str
) -> None:
    """`prepare` and `train` look in the same way, and train looks again when it takes the fence."""
    home = folders(tmp_path, 1, "r9")
    home.job.mkdir(parents=True)
    for leave in LEAVE:
        if leave in left:
            leave(home, digest)
    before = content(tmp_path)
    try:
        done = fencing.earlier_result(home, JOB) is not None
        if not done:
            fencing.check_vacant(home, JOB)
        refused = ""
    except WorkspaceOccupied as error:
        done, refused = False, str(error)
    assert content(tmp_path) == before
    assert (not refused) == allowed(left, digest == JOB.digest)
    assert done == (not refused and {result, artifact} <= left)
    if not refused and not done:
        assert fencing.claim(home, JOB, facts(), "r9").run_id == "r9"
    if refused:
        for words in ("jobs/tune in the workspace (work)", "overwritten", "another metadata.name, or remove jobs/tune"):
            assert words in refused
        assert ("uid u7, attempt 3" in refused) == (fence in left), "it says whose results they are"


def test_the_name_of_the_owner_is_left_out_if_the_fence_is_not_its(tmp_path: Path) -> None:
    home = folders(tmp_path)
    home.job.mkdir(parents=True)
    result(home, OTHER.digest)
    fence(home, "sha256:of-a-third-job")
    with pytest.raises(WorkspaceOccupied) as refused:
        fencing.earlier_result(home, JOB)
    assert "uid" not in str(refused.value)
    assert json.loads((home.job / fencing.FENCE).read_text())["uid"] == "u7"
