"""A rank with a fake workflow, which plays a scene: ``fake_rank.py SCENES SETTINGS DIRECTORY RANK``.

Everything but the workflow is the trainer's own. SCENES is JSON: for each rank the name of a scene and its arguments.
SETTINGS say whether the ranks join by the real rendezvous.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from finetune_api.contract import ResolvedJob
from finetune_api.status import Artifact, Checkpoint, Prepared, Progress
from finetune_trainer import errors
from finetune_trainer.launcher import rendezvous, worker
from finetune_trainer.launcher.handover import Handover
from finetune_trainer.run import Run, WorkflowResult
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.workspace import fencing, files, prepared
from finetune_trainer.workspace.folders import Folders

NOW = "2026-01-01T00:00:00Z"


def done(run: Run, metrics: dict[str, str]) -> WorkflowResult:
    if run.is_main:
        run.folders.artifact.mkdir(exist_ok=True)
        (run.folders.artifact / "adapter.safetensors").write_text("weights")
        report(run, 10)
    digest, size = files.digest_folder(run.folders.artifact) if run.is_main else ("", 0)
    uri = f"pvc://{run.job.workspace_claim}/jobs/{run.job.name}/artifact"
    return WorkflowResult(Artifact(uri=uri, kind="adapter", digest=digest, size_bytes=size), metrics)


def fail(run: Run, error: str, message: str) -> WorkflowResult:
    raise getattr(errors, error)(message)


def shout(run: Run, word: str, times: int) -> WorkflowResult:
    raise errors.InvalidData(word * times)


def crash(run: Run, message: str) -> WorkflowResult:
    raise RuntimeError(message)


def memory_error(run: Run) -> WorkflowResult:
    raise MemoryError("cannot allocate 3 GiB")


def no_space(run: Run) -> WorkflowResult:
    raise OSError(28, "No space left on device", str(run.folders.run_checkpoints / "x"))


def die(run: Run, number: int) -> WorkflowResult:
    os.kill(os.getpid(), number)
    raise AssertionError("still alive")


def exit_in_c(run: Run, message: str) -> WorkflowResult:
    """As bitsandbytes ends the process."""
    os.write(2, message.encode())
    ctypes.CDLL(None).exit(1)
    raise AssertionError("still alive")


def abort_in_c(run: Run, message: str) -> WorkflowResult:
    """As a thread of NCCL ends the process."""
    os.write(2, message.encode())
    os.abort()


def show(run: Run, names: list[str]) -> WorkflowResult:
    raise errors.InvalidData(json.dumps({name: os.environ[name] for name in names if name in os.environ}))


def save(run: Run, seconds: float) -> WorkflowResult:
    """Train until SIGTERM, then save for ``seconds``."""
    started(run)
    report(run, 3)
    while not run.stop_requested():
        time.sleep(0.05)
    (run.folders.run_checkpoints / f"begun-{run.rank}").write_text(f"{run.seconds_left()}")
    time.sleep(seconds)
    (run.folders.run_checkpoints / f"saved-{run.rank}").touch()
    raise errors.Preempted("Saved at step 3")


def ignore_sigterm(run: Run) -> WorkflowResult:
    """A step that never ends."""
    started(run)
    while True:
        time.sleep(1)


def hang(run: Run, seconds: float) -> WorkflowResult:
    """A step that never ends, and whose last heartbeat was so many seconds ago."""
    past = time.monotonic() - seconds
    with mock.patch.object(heartbeat, "time", SimpleNamespace(monotonic=lambda: past)):
        heartbeat.refresh()
    while True:
        time.sleep(1)


def report_for_ever(run: Run) -> WorkflowResult:
    started(run)
    for step in range(1_000_000):
        report(run, step)
        time.sleep(0.05)
    raise AssertionError


def flood(run: Run, steps: int) -> WorkflowResult:
    """Report every step of a fast training, the checkpoint early on."""
    run.report_checkpoint(Checkpoint(attempt=run.attempt.attempt, step=1, path="somewhere", time=NOW))
    for step in range(1, steps + 1):
        report(run, step)
        time.sleep(2 / steps)
    return done(run, {})


def steps(run: Run, first: int, last: int, *after: Any) -> WorkflowResult:
    """Train from a step to another, as `loop` does it. Then another scene, or a kill."""
    heartbeat.begin_training(first)
    for step in range(first, last):
        heartbeat.beat("train", step)
        time.sleep(0.01)
        heartbeat.beat("train", step + 1)
    report(run, last)
    return SCENES[after[0]](run, *after[1:]) if after else die(run, signal.SIGKILL)


def in_turn(run: Run, *scenes: list[Any]) -> WorkflowResult:
    """One scene after each restart of the ranks; the last of them again and again."""
    restarts = int(run.run_id.rpartition("-r")[2]) if "-r" in run.run_id.removeprefix("run") else 0
    name, *arguments = scenes[min(restarts, len(scenes) - 1)]
    return SCENES[name](run, *arguments)


def orphan(run: Run) -> WorkflowResult:
    """Crash, and leave a process behind, as a rank with data loaders does."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (run.folders.workspace / f"orphan-{run.rank}").write_text(str(child.pid))
    raise RuntimeError("its data loader remains")


def started(run: Run) -> None:
    (run.folders.run_checkpoints / f"pid-{run.rank}").write_text(str(os.getpid()))


def report(run: Run, step: int) -> None:
    run.report_progress(
        Progress(attempt=run.attempt.attempt, step=step, total_steps=10, percent=0, summary="", last_update_time=NOW)
    )


SCENES: dict[str, Callable[..., WorkflowResult]] = {
    "done": done,
    "fail": fail,
    "shout": shout,
    "crash": crash,
    "memory_error": memory_error,
    "no_space": no_space,
    "die": die,
    "exit_in_c": exit_in_c,
    "abort_in_c": abort_in_c,
    "show": show,
    "save": save,
    "steps": steps,
    "ignore_sigterm": ignore_sigterm,
    "hang": hang,
    "report_for_ever": report_for_ever,
    "flood": flood,
    "in_turn": in_turn,
    "orphan": orphan,
}


def prepare(handover: Handover, _report: object, check_stop: Callable[[], None]) -> ExitReport:
    """Call `make_ready`, or play the scene "prepare_fails" or "prepare_waits"."""
    scene, *arguments = json.loads(sys.argv[1])[0]
    if scene == "prepare_fails":
        raise getattr(errors, arguments[0])(arguments[1])
    if scene == "prepare_waits":
        handover.folders.run_checkpoints.mkdir(parents=True, exist_ok=True)
        (handover.folders.run_checkpoints / "pid-0").write_text(str(os.getpid()))
        while True:
            time.sleep(0.05)
            if not arguments:
                check_stop()
    return ExitReport(0, "Completed", "3 rows", prepared=make_ready(handover.folders, handover.job))


def make_ready(folders: Folders, job: ResolvedJob) -> Prepared:
    """Write the least that training needs as prepared."""
    data, model = folders.workspace / "cache" / "data" / "key", folders.workspace / "cache" / "model"
    for folder in (data, model):
        folder.mkdir(parents=True, exist_ok=True)
    (data / prepared.MANIFEST).write_text("{}")
    summary = Prepared(digest="sha256:1", rows=3, tokens=30, trained_tokens=20)
    prepared.write(folders, job, prepared.PreparedJob(model, None, data, ["train"], summary))
    return summary


def publish(handover: Handover, _report: object, check_stop: Callable[[], None]) -> ExitReport:
    """Like the worker's, without a bucket. Fails as long as the workspace has a file ``refuse``."""
    folders = handover.folders
    if (folders.workspace / "refuse").exists():
        raise errors.AccessDenied("the bucket refuses")
    result = fencing.earlier_result(folders, handover.job)
    assert result is not None
    assert result.artifact is not None
    artifact = result.artifact.model_copy(update={"published": handover.job.output.uri})
    return ExitReport(0, "Completed", "published", artifact, result.metrics)


def play(run: Run) -> WorkflowResult:
    name, *arguments = json.loads(sys.argv[1])[run.rank]
    return SCENES[name](run, *arguments)


if __name__ == "__main__":
    stop = Stop().listen(signal.SIGTERM)
    tasks = {"prepare": prepare, "publish": publish}
    # The real rendezvous imports torch, which takes longer than everything else in most tests.
    join = rendezvous.join if json.loads(sys.argv[2])["rendezvous"] else lambda handover, *_: handover.run_id
    worker.main(Path(sys.argv[3]), int(sys.argv[4]), stop, lambda _stage: play, tasks, join)
