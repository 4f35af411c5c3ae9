"""The contract between pod and operator, with the real launcher and two fake ranks: exit code, termination message,
status, RESULT.json and fence."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.runtime import cpus

from tests.trainer.support import fake_api
from tests.trainer.support.fake_api import FakeApi
from tests.trainer.support.pod import HURRY, Pod, manifest


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path / "serviceaccount")
    yield server
    server.close()


def environment_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], given: dict[str, str]
) -> dict[str, str]:
    """Those of the variables that two ranks get from a launcher that is given some of them."""
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    pod = Pod(tmp_path, [["show", names]] * 2)
    assert pod.run() == 65
    shown: dict[str, str] = json.loads(pod.result.message)
    return shown


DONE: list[Any] = ["done", {"train_loss": "0.5"}]
swept = partial(pytest.param, marks=pytest.mark.sweep)
"""Ends that the launcher reports as it reports the others here."""


@pytest.mark.parametrize(
    ("scene", "code", "reason", "message"),
    [
        (DONE, 0, "Completed", ""),
        swept(["fail", "InvalidSpec", "rank 9 given"], 64, "InvalidSpec", "rank 9 given"),
        (["fail", "InvalidData", "rows.jsonl:7"], 65, "InvalidData", "rows.jsonl:7"),
        swept(["fail", "NotFound", "no model"], 66, "NotFound", "no model"),
        swept(["fail", "SourceUnreachable", "hub"], 69, "SourceUnreachable", "hub"),
        (["crash", "a bug"], 70, "InternalError", "RuntimeError on rank 0: a bug"),
        (["fail", "GpuOutOfMemory", "80 GiB"], 71, "GPUOutOfMemory", "80 GiB"),
        swept(["fail", "Diverged", "loss is nan"], 72, "Diverged", "loss is nan"),
        (["no_space"], 73, "NoSpace", "more room"),
        swept(["fail", "WorkspaceUnusable", "stale"], 74, "WorkspaceUnusable", "stale"),
        (["fail", "Preempted", "step 3"], 75, "Disrupted", "step 3"),
        swept(["fail", "AccessDenied", "gated"], 77, "AccessDenied", "gated"),
        (["memory_error"], 137, "OutOfMemory", "resources.memory"),
    ],
)
def test_every_end_reaches_exit_code_termination_message_and_status(
    tmp_path: Path, api: FakeApi, scene: list[Any], code: int, reason: str, message: str
) -> None:
    pod = Pod(tmp_path, [scene, scene], api)
    assert pod.run() == code
    assert (pod.result.exit_code, pod.result.reason, pod.result.attempt) == (code, reason, 1)
    assert message in pod.result.message
    assert api.status["result"] == pod.result.to_dict()
    assert api.applied[-1]["metadata"] == {"name": "tune", "namespace": "team", "uid": pod.uid}
    path = "/apis/finetune-operator.io/v1alpha1/namespaces/team/finetunejobs/tune/status"
    assert set(api.paths) == {f"{path}?fieldManager=finetune-trainer&force=true"}


@pytest.mark.parametrize(
    ("scene", "code"),
    [
        (["exit_in_c", "Error out of memory at line 88 in file /src/csrc/ops.cu\n"], 71),
        (["exit_in_c", "Error invalid argument at line 88 in file /src/csrc/ops.cu\n"], 70),
        (
            [
                "abort_in_c",
                "terminate called after throwing an instance of 'c10::DistBackendError'\n  what():  [PG ID 0 Rank 0]"
                " Process group watchdog thread terminated with exception: CUDA error: out of memory\n"
                + "frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x96\n"
                * 60,
            ],
            71,
        ),
        (["abort_in_c", "*** stack smashing detected ***: terminated\n"], 134),
    ],
)
def test_a_library_that_ends_the_process_is_known_by_its_last_words(
    tmp_path: Path, api: FakeApi, scene: list[Any], code: int
) -> None:
    pod = Pod(tmp_path, [["save", 0], scene], api, waits=HURRY)
    assert pod.run() == code
    assert scene[1].splitlines()[0] in pod.log.read_text(), "what a rank writes stays in the pod's log"
    memory = pod.result.out_of_memory
    assert (memory is not None) == (code == 71)
    if memory is not None:
        assert (memory.rank, memory.phase, memory.micro_batch_size) == (1, "load", 4)
        assert "out of memory" in pod.result.message


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
            {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
        ),
        ({"PYTORCH_ALLOC_CONF": ""}, {"PYTORCH_ALLOC_CONF": ""}),
    ],
)
def test_the_allocator_of_gpu_memory_grows_its_segments_unless_the_user_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], seen: dict[str, str]
) -> None:
    names = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"]
    shown = environment_of_ranks(tmp_path, monkeypatch, names, given)
    assert shown == seen


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_ranks_share_the_cpus_and_their_threads_soon_sleep_unless_the_user_wants_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], seen: dict[str, str]
) -> None:
    names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"]
    shown = environment_of_ranks(tmp_path, monkeypatch, names, given)
    half = str(max(1, cpus.usable() // 2))
    assert shown == {**seen, "OMP_NUM_THREADS": half}


def test_only_an_internal_error_leaves_a_stack_trace(tmp_path: Path) -> None:
    user = Pod(tmp_path, [["fail", "NotFound", "no model"]] * 2)
    user.run()
    assert "Traceback" not in user.log.read_text()
    assert user.log.read_text().count("no model") == 1
    ours = Pod(tmp_path, [["crash", "a bug"]] * 2, run_id="run-2", attempt=2)
    ours.run()
    assert "Traceback" in ours.log.read_text()


def test_the_strongest_of_two_codes_decides(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["crash", "connection closed by peer"], ["fail", "InvalidData", "rows.jsonl:7"]])
    assert pod.run() == 65
    assert "rows.jsonl:7" in pod.result.message
    assert "70 (InternalError)" in pod.result.message


def test_ranks_that_remain_after_a_failure_are_ended_and_do_not_count(tmp_path: Path) -> None:
    """Rank 0 gets SIGTERM because of rank 1, and ends with 75, which would be the stronger class."""
    pod = Pod(tmp_path, [["save", 0], ["fail", "Diverged", "loss is nan"]], waits=HURRY)
    assert pod.run() == 72


def test_a_rank_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["ignore_sigterm"], ["fail", "GpuOutOfMemory", "80 GiB"]], waits=HURRY)
    assert pod.run() == 71


@pytest.mark.parametrize("kills", ["unknown", "growing"])
def test_a_killed_rank_is_reported_as_out_of_memory(tmp_path: Path, kills: Any) -> None:
    pod = Pod(tmp_path, [["crash", "connection closed by peer"], ["die", 9]], kills=kills)
    assert pod.run() == 137
    assert pod.result.reason == "OutOfMemory"
    assert "resources.memory" in pod.result.message


def test_a_killed_rank_is_not_out_of_memory_when_the_kernel_excludes_it(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["crash", "connection closed by peer"], ["die", 9]], kills="steady")
    assert pod.run() == 137
    assert pod.result.reason == "Killed"
    assert "Rank 1 was killed from outside" in pod.result.message


def test_a_huge_message_is_truncated_and_saved_in_the_workspace(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["shout", "🦙", 50_000]] * 2)
    assert pod.run() == 65
    pointer = "jobs/tune/reports/end-1-run-1.json"
    assert pointer in pod.result.message
    assert json.loads((tmp_path / "workspace" / pointer).read_text())["message"] == "🦙" * 50_000


def test_every_apply_has_all_fields_of_the_trainer(tmp_path: Path, api: FakeApi) -> None:
    """An apply without a field would remove the field."""
    pod = Pod(tmp_path, [["flood", 200], DONE], api)
    assert pod.run() == 0
    assert set(api.status) == {"progress", "checkpoint", "result"}
    assert api.status["progress"]["step"] == 10
    # The first apply is that of a run that loads.
    assert all("checkpoint" in body["status"] for body in api.applied[2:])
    # 200 reports in two seconds, at most one apply per second: most are skipped.
    assert 3 <= len(api.applied) <= 50


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_run_reports_before_it_loads_anything(tmp_path: Path, api: FakeApi, attempt: int) -> None:
    """Otherwise a run that cannot report looks like one that loads for long."""
    assert Pod(tmp_path, [["crash", "x"]] * 2, api, attempt=attempt).run() == 70
    first = api.applied[0]["status"]["progress"]
    assert (first["activity"], first["attempt"], first["kind"]) == ("Loading", attempt, "train")


def test_a_later_attempt_keeps_the_reported_checkpoint(tmp_path: Path, api: FakeApi) -> None:
    Pod(tmp_path, [["flood", 3], ["fail", "SourceUnreachable", "x"]], api).run()
    Pod(tmp_path, [["crash", "x"]] * 2, api, run_id="run-2", attempt=2).run()
    assert api.status["result"]["attempt"] == 2
    assert api.status["checkpoint"]["step"] == 1


@pytest.mark.parametrize(
    "answer", [fake_api.broken, fake_api.forbidden, fake_api.hang], ids=lambda answer: answer.__name__
)
def test_training_does_not_need_the_api_server(tmp_path: Path, api: FakeApi, answer: Any) -> None:
    api.answer = answer
    pod = Pod(tmp_path, [["flood", 50], DONE], api, waits=HURRY)
    assert pod.run() == 0
    assert pod.result.artifact is not None


def test_a_failed_write_of_the_result_is_retried(tmp_path: Path, api: FakeApi) -> None:
    answers = iter([fake_api.broken, fake_api.broken])
    api.answer = lambda body: next(answers, fake_api.accept)(body) if "result" in body["status"] else (200, {})
    assert Pod(tmp_path, [DONE, DONE], api).run() == 0
    assert len([body for body in api.applied if "result" in body["status"]]) == 3


def test_a_job_that_is_done_is_not_trained_again(tmp_path: Path, api: FakeApi) -> None:
    """Created again under the same name with another uid, as after a restore without status."""
    first = Pod(tmp_path, [DONE, DONE], api)
    assert first.run() == 0
    again = Pod(tmp_path, [["crash", "trained again"]] * 2, api, run_id="run-2", uid="22222222-bbbb", allow_cpu=False)
    assert again.run() == 0
    assert again.result.artifact == first.result.artifact
    assert "Complete already: jobs/tune/RESULT.json" in again.result.message
    assert "remove jobs/tune from the workspace or use another name" in again.result.message
    assert api.status["result"] == again.result.to_dict()


def test_an_attempt_that_finds_the_result_keeps_progress_and_checkpoint(tmp_path: Path, api: FakeApi) -> None:
    """The pod was evicted between RESULT.json and its exit."""
    Pod(tmp_path, [["flood", 3], DONE], api).run()
    assert Pod(tmp_path, [["crash", "trained again"]] * 2, api, run_id="run-2", attempt=2).run() == 0
    assert api.status["result"]["attempt"] == 2
    assert set(api.status) == {"progress", "checkpoint", "result"}


def test_a_result_without_its_artifact_is_no_result(tmp_path: Path) -> None:
    first = Pod(tmp_path, [DONE, DONE])
    assert first.run() == 0
    shutil.rmtree(first.home / "artifact")
    again = Pod(tmp_path, [["fail", "Diverged", "trained again"]] * 2, run_id="run-2", attempt=2)
    assert again.run() == 72
    assert not (first.home / "RESULT.json").exists()


@pytest.mark.parametrize("scene", [DONE, ["crash", "x"]], ids=["finished", "unfinished"])
def test_results_of_another_job_are_not_touched(tmp_path: Path, scene: list[Any]) -> None:
    first = Pod(tmp_path, [scene, scene])
    first.run()
    saved = first.home / "checkpoints" / "1-run-1" / "checkpoint-5" / "model.safetensors"
    saved.parent.mkdir(parents=True)
    saved.touch()
    before = {p: p.read_bytes() for p in first.home.rglob("*") if p.is_file()}
    changed = manifest(learningRate=0.5)
    other = Pod(tmp_path, [DONE, DONE], job=changed, run_id="run-2", uid="22222222-bbbb", ready=False)
    assert other.run() == 74
    assert other.result.reason == "WorkspaceOccupied"
    assert "another metadata.name, or remove jobs/tune" in other.result.message
    assert {p: p.read_bytes() for p in first.home.rglob("*") if p.is_file()} == before


def test_a_lower_attempt_is_superseded(tmp_path: Path, api: FakeApi) -> None:
    newer = Pod(tmp_path, [["crash", "x"]] * 2, run_id="run-2", attempt=2)
    newer.run()
    older = Pod(tmp_path, [DONE, DONE], api, run_id="run-1", attempt=1)
    assert older.run() == 78
    assert older.result.reason == "Superseded"
    assert not (older.home / "RESULT.json").exists()
    assert api.applied == []


def test_a_job_created_again_takes_over(tmp_path: Path) -> None:
    Pod(tmp_path, [["crash", "x"]] * 2, run_id="run-7", attempt=7).run()
    again = Pod(tmp_path, [DONE, DONE], run_id="run-8", uid="22222222-bbbb")
    assert again.run() == 0


def test_a_run_ends_when_another_takes_its_fence(tmp_path: Path) -> None:
    old = Pod(tmp_path, [["ignore_sigterm"], ["ignore_sigterm"]], waits=HURRY)
    process = old.start()
    old.wait_until_training(process)
    assert Pod(tmp_path, [DONE, DONE], run_id="run-2", attempt=2).run() == 0
    assert process.wait(60) == 78
    assert (old.home / "RESULT.json").exists()


def test_a_workspace_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    # Not below tmp_path, which other users cannot enter: here the launcher runs as the image's user.
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        (folder / "closed").mkdir(mode=0o555)
        user = 10001 if os.getuid() == 0 else None
        pod = Pod(folder, [DONE, DONE], user=user, workspace=folder / "closed", ready=False)
        pod.termination.chmod(0o666)
        assert pod.run() == 74
        assert pod.result.reason == "WorkspaceUnusable"
        assert f"uid {user or os.getuid()}" in pod.result.message
        assert "Permission denied" in pod.result.message
    finally:
        shutil.rmtree(folder)


def test_missing_gpus_are_reported(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [DONE, DONE], allow_cpu=False)
    assert pod.run() == 70
    assert "requests 2 GPUs per node, but this pod can use 0" in pod.result.message
    assert "trainer.allowCpu" in pod.result.message
    assert not (pod.home / "fence.json").exists()
