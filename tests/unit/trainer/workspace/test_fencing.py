"""The fence and the result of a job, also after a crash between two writes."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import AttemptFacts, ResolvedJob, resolve
from finetune_api.job import FineTuneJob
from finetune_api.status import Artifact, Result
from finetune_trainer.errors import NoSpace, Superseded, WorkspaceOccupied, WorkspaceUnusable
from finetune_trainer.workspace import fencing, files
from finetune_trainer.workspace.folders import Folders, layout
from finetune_trainer.workspace.storage import storage_errors


def job(**training: Any) -> ResolvedJob:
    spec = {
        "stage": "sft",
        "model": {"source": "pvc://models/small"},
        "datasets": [{"source": "pvc://models/data.jsonl", "format": "openai"}],
        "training": {"maxSteps": 10, **training},
        "workspace": {"claimName": "work"},
    }
    head = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "tune"}}
    return resolve(FineTuneJob.model_validate({**head, "spec": spec}))


JOB = job()


def facts(attempt: int = 1, uid: str = "u1") -> AttemptFacts:
    return AttemptFacts(namespace="n", name="tune", uid=uid, attempt=attempt, job_name="j")


def folders(root: Path, attempt: int = 1, run_id: str = "r1") -> Folders:
    return layout(root, "tune", attempt, run_id, {})


def claim(root: Path, attempt: int = 1, run_id: str = "r1", uid: str = "u1") -> fencing.Fence:
    return fencing.claim(folders(root, attempt, run_id), JOB, facts(attempt, uid), run_id)


def finish(root: Path) -> Result:
    """Finish the job; its result."""
    fence = claim(root)
    home = folders(root)
    home.artifact.mkdir()
    (home.artifact / "adapter.safetensors").write_bytes(b"weights")
    digest, size = files.digest_folder(home.artifact)
    artifact = Artifact(uri="pvc://kept/jobs/tune/artifact", kind="adapter", digest=digest, size_bytes=size)
    result = Result(kind="train", attempt=1, exit_code=0, reason="Completed", message="", artifact=artifact)
    fencing.save_result(home, fence, result)
    return result


def test_json_is_written_atomically(tmp_path: Path) -> None:
    file = tmp_path / "fence.json"
    files.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(file, {"a": [1] * 100_000, "b": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_the_result_of_a_finished_job_is_found(tmp_path: Path) -> None:
    assert fencing.earlier_result(folders(tmp_path), JOB) is None
    result = finish(tmp_path)
    assert fencing.earlier_result(folders(tmp_path), JOB) == result


@pytest.mark.parametrize("change", ["removed", "changed", "added", "renamed"])
def test_a_changed_artifact_is_neither_reported_nor_overwritten(tmp_path: Path, change: str) -> None:
    finish(tmp_path)
    file = folders(tmp_path).artifact / "adapter.safetensors"
    if change == "removed":
        file.unlink()
    elif change == "changed":
        file.write_bytes(b"weightz")
    elif change == "added":
        (file.parent / "more").touch()
    else:
        file.rename(file.parent / "model.safetensors")
    with pytest.raises(WorkspaceOccupied, match=r"jobs/tune/artifact .* move it away, or use another metadata.name"):
        fencing.earlier_result(folders(tmp_path), JOB)
    assert (folders(tmp_path).job / fencing.RESULT).exists()


def test_a_result_without_artifact_is_removed_after_the_claim(tmp_path: Path) -> None:
    finish(tmp_path)
    home = folders(tmp_path, 2, "r2")
    shutil.rmtree(home.artifact)
    assert fencing.earlier_result(home, JOB) is None
    assert (home.job / fencing.RESULT).exists()
    fencing.clear_leftovers(home, claim(tmp_path, 2, "r2"))
    assert not (home.job / fencing.RESULT).exists()


def test_only_leftovers_of_earlier_runs_are_removed(tmp_path: Path) -> None:
    finish(tmp_path)
    home = folders(tmp_path, 2, "r2")
    other = tmp_path / "jobs" / "other"
    leftovers = [
        home.job / ".artifact-r1",
        home.job / ".artifact-old-r1",
        home.checkpoints / "1-r1/.deleting-checkpoint-5",
        home.checkpoints / "1-r1/.staging-7",
    ]
    kept = [
        home.job / ".artifact-r2",
        home.run_checkpoints / ".deleting-checkpoint-5",
        home.run_checkpoints / ".staging-7",
        home.checkpoints / "1-r1/checkpoint-6",
        home.artifact,
        other / ".artifact-r1",
    ]
    for folder in (*leftovers, *kept):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").touch()
    fencing.clear_leftovers(home, claim(tmp_path, 2, "r2"))
    assert [folder for folder in leftovers if folder.exists()] == []
    assert [folder for folder in kept if not (folder / "file").exists()] == []
    assert (home.job / fencing.RESULT).exists()


def test_another_job_is_refused_before_and_after_its_end(tmp_path: Path) -> None:
    claim(tmp_path)
    (folders(tmp_path).run_checkpoints / "checkpoint-5").mkdir()
    other = job(learningRate=0.5)
    with pytest.raises(WorkspaceOccupied, match=r"another metadata.name, or remove jobs/tune"):
        fencing.claim(folders(tmp_path), other, facts(2), "r2")
    finish(tmp_path)
    with pytest.raises(WorkspaceOccupied, match=r"RESULT.json"):
        fencing.earlier_result(folders(tmp_path), other)


def test_a_job_corrected_before_anything_was_trained_keeps_its_name(tmp_path: Path) -> None:
    claim(tmp_path)
    other = job(learningRate=0.5)
    assert fencing.claim(folders(tmp_path, 1, "r2"), other, facts(1), "r2").digest == other.digest


def test_settings_that_do_not_decide_the_result_may_differ(tmp_path: Path) -> None:
    claim(tmp_path)
    assert fencing.claim(folders(tmp_path, 2, "r2"), job(microBatchSize=1), facts(2), "r2").attempt == 2


def test_a_crash_after_each_write_can_be_continued(tmp_path: Path) -> None:
    home = folders(tmp_path)
    home.job.mkdir(parents=True)  # before the fence
    (home.job / ".fence.json.12345678.tmp").touch()  # while it is written
    claim(tmp_path)
    home.artifact.mkdir()  # after the artifact, before the result
    assert fencing.earlier_result(folders(tmp_path), JOB) is None
    claim(tmp_path, 2, "r2")


def test_checkpoints_without_a_fence_are_refused(tmp_path: Path) -> None:
    (folders(tmp_path).checkpoints / "1-x" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(WorkspaceOccupied, match=r"no fence.json"):
        claim(tmp_path)


def test_only_an_equal_or_higher_attempt_takes_over(tmp_path: Path) -> None:
    claim(tmp_path, 2, "r2")
    with pytest.raises(Superseded):
        claim(tmp_path, 1, "r1")
    claim(tmp_path, 2, "r2-again")
    claim(tmp_path, 3, "r3")
    claim(tmp_path, 1, "r9", uid="u2")
    current = fencing.Fence.read(folders(tmp_path))
    assert current is not None
    assert (current.uid, current.attempt, current.run_id) == ("u2", 1, "r9")


@pytest.mark.parametrize(("attempt", "uid"), [(2, "u1"), (1, "u1"), (1, "u2")])
def test_a_later_run_is_detected(tmp_path: Path, attempt: int, uid: str) -> None:
    own = claim(tmp_path)
    fencing.check_fence(folders(tmp_path), own)
    claim(tmp_path, attempt, "r2", uid)
    with pytest.raises(Superseded, match="r2"):
        fencing.check_fence(folders(tmp_path), own)
    with pytest.raises(Superseded):
        fencing.save_result(folders(tmp_path), own, result_without_artifact())
    assert not (folders(tmp_path).job / fencing.RESULT).exists()


def test_ranks_before_a_restart_may_delete_and_replace_nothing(tmp_path: Path) -> None:
    before = claim(tmp_path)
    left = folders(tmp_path).run_checkpoints
    (left / ".staging-5").mkdir()
    (left / "checkpoint-4").mkdir()
    new = folders(tmp_path, 1, "r1-r1")
    renewed = fencing.renew(new, before, "r1-r1")
    fencing.check_fence(new, renewed)
    with pytest.raises(Superseded, match="r1-r1"):
        fencing.check_fence(folders(tmp_path), before)
    assert new.run_checkpoints.is_dir()
    assert new.run_checkpoints != left
    assert [path.name for path in left.iterdir()] == ["checkpoint-4"], "only what is not whole is removed"


def test_a_run_that_lost_the_fence_does_not_restart(tmp_path: Path) -> None:
    before = claim(tmp_path)
    claim(tmp_path, 2, "r2")
    with pytest.raises(Superseded, match="r2"):
        fencing.renew(folders(tmp_path, 1, "r1-r1"), before, "r1-r1")
    current = fencing.Fence.read(folders(tmp_path))
    assert current is not None
    assert current.run_id == "r2"


def result_without_artifact() -> Result:
    return Result(kind="train", attempt=1, exit_code=0, reason="Completed", message="")


def test_a_lower_attempt_does_not_keep_the_fence(tmp_path: Path) -> None:
    """It read the fence before attempt 2 wrote it, and wrote it after."""
    own = claim(tmp_path, 2, "r2")
    straggler = fencing.Fence("u1", 1, "r1", JOB.digest)
    straggler.write(folders(tmp_path))
    fencing.check_fence(folders(tmp_path), own)
    with pytest.raises(Superseded):
        fencing.check_fence(folders(tmp_path), straggler)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"uid": "u1"}', '{"uid": 1, "attempt": "x", "runId": 1, "digest": 1}']
)
def test_a_damaged_fence_is_named(tmp_path: Path, content: str) -> None:
    folders(tmp_path).job.mkdir(parents=True)
    (folders(tmp_path).job / fencing.FENCE).write_text(content)
    with pytest.raises(WorkspaceUnusable, match=r"fence.json is damaged"):
        claim(tmp_path)


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    claim(tmp_path)
    file = folders(tmp_path).job / fencing.RESULT
    file.write_text(json.dumps({"digest": JOB.digest, "result": {"kind": "?"}}))
    with pytest.raises(WorkspaceUnusable, match=r"RESULT.json is damaged"):
        fencing.earlier_result(folders(tmp_path), JOB)


def test_local_attempts_count_up(tmp_path: Path) -> None:
    assert fencing.next_local_attempt(folders(tmp_path), "laptop") == 1
    claim(tmp_path, 4, "r4", uid="u1")
    assert fencing.next_local_attempt(folders(tmp_path), "laptop") == 1
    claim(tmp_path, 4, "r5", uid="laptop")
    assert fencing.next_local_attempt(folders(tmp_path), "laptop") == 5


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EROFS, WorkspaceUnusable),
        (errno.ENOTDIR, WorkspaceUnusable),
        (errno.EIO, OSError),
        (errno.ESTALE, OSError),
    ],
)
def test_storage_errors_become_errors_of_the_job(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind), storage_errors(Path("/workspace")):
        raise OSError(number, "x")
