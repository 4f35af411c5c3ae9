"""A rank whose workflow does as it is told, in place of a training: ``fake_rank.py SCENARIO SETTINGS FOLDER RANK``.

All but the workflow is the trainer's own. SCENARIO is JSON, rank -> [what, its arguments]. SETTINGS say whether ranks
really meet.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from finetune_api.contract import ResolvedJob
from finetune_api.status import Artifact, Checkpoint, Prepared, Progress
from finetune_trainer import errors, prepared, rendezvous, worker, workspace
from finetune_trainer.handover import Handover
from finetune_trainer.results import End
from finetune_trainer.run import Folders, Outcome, Run
from finetune_trainer.stopping import Stop

NOW = "2026-01-01T00:00:00Z"


def done(run: Run, metrics: dict[str, str]) -> Outcome:
    if run.is_main:
        run.folders.artifact.mkdir(exist_ok=True)
        (run.folders.artifact / "adapter.safetensors").write_text("weights")
        report(run, 10)
    digest, size = workspace.digest_folder(run.folders.artifact) if run.is_main else ("", 0)
    uri = f"pvc://{run.job.workspace_claim}/jobs/{run.job.name}/artifact"
    return Outcome(Artifact(uri=uri, kind="adapter", digest=digest, size_bytes=size), metrics)


def fail(run: Run, error: str, message: str) -> Outcome:
    raise getattr(errors, error)(message)


def shout(run: Run, word: str, times: int) -> Outcome:
    raise errors.InvalidData(word * times)


def crash(run: Run, message: str) -> Outcome:
    raise RuntimeError(message)


def memory_error(run: Run) -> Outcome:
    raise MemoryError("cannot allocate 3 GiB")


def no_space(run: Run) -> Outcome:
    raise OSError(28, "No space left on device", str(run.folders.run_checkpoints / "x"))


def die(run: Run, number: int) -> Outcome:
    os.kill(os.getpid(), number)
    raise AssertionError("still alive")


def save(run: Run, seconds: float) -> Outcome:
    """Train until told to stop, then save for some time."""
    started(run)
    report(run, 3)
    while not run.stop_requested():
        time.sleep(0.05)
    (run.folders.run_checkpoints / f"begun-{run.rank}").write_text(f"{run.seconds_left()}")
    time.sleep(seconds)
    (run.folders.run_checkpoints / f"saved-{run.rank}").touch()
    raise errors.Preempted("Saved at step 3")


def deaf(run: Run) -> Outcome:
    """In the middle of a step that takes for ever."""
    started(run)
    while True:
        time.sleep(1)


def report_for_ever(run: Run) -> Outcome:
    started(run)
    for step in range(1_000_000):
        report(run, step)
        time.sleep(0.05)
    raise AssertionError


def flood(run: Run, steps: int) -> Outcome:
    """Report every step of a fast training, the checkpoint early on."""
    run.report_checkpoint(Checkpoint(attempt=run.attempt.attempt, step=1, path="somewhere", time=NOW))
    for step in range(1, steps + 1):
        report(run, step)
        time.sleep(2 / steps)
    return done(run, {})


def started(run: Run) -> None:
    (run.folders.run_checkpoints / f"pid-{run.rank}").write_text(str(os.getpid()))


def report(run: Run, step: int) -> None:
    run.report_progress(
        Progress(attempt=run.attempt.attempt, step=step, total_steps=10, percent=0, summary="", last_update_time=NOW)
    )


SCENES: dict[str, Callable[..., Outcome]] = {
    f.__name__: f for f in (done, fail, shout, crash, memory_error, no_space, die, save, deaf, report_for_ever, flood)
}


def prepare(handover: Handover, _report: object, check_stop: Callable[[], None]) -> End:
    """`make_ready`, or what a scene "prepare_..." says."""
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
    return End(0, "Completed", "3 rows", prepared=make_ready(handover.folders, handover.job))


def make_ready(folders: Folders, job: ResolvedJob) -> Prepared:
    """As little as training needs to find."""
    data, model = folders.workspace / "cache" / "data" / "key", folders.workspace / "cache" / "model"
    for folder in (data, model):
        folder.mkdir(parents=True, exist_ok=True)
    (data / prepared.MANIFEST).write_text("{}")
    summary = Prepared(digest="sha256:1", rows=3, tokens=30, trained_tokens=20)
    prepared.write(folders, job, prepared.PreparedJob(model, None, data, ["train"], summary))
    return summary


def publish(handover: Handover, _report: object, check_stop: Callable[[], None]) -> End:
    """As the worker does, with a file in place of a bucket; fails as long as there is a file ``refuse``."""
    folders = handover.folders
    if (folders.workspace / "refuse").exists():
        raise errors.AccessDenied("the bucket says no")
    result = workspace.earlier_result(folders, handover.job)
    assert result is not None
    assert result.artifact is not None
    artifact = result.artifact.model_copy(update={"published": f"{handover.job.output.uri}/v1"})
    return End(0, "Completed", "published", artifact, result.metrics)


def play(run: Run) -> Outcome:
    name, *arguments = json.loads(sys.argv[1])[run.rank]
    return SCENES[name](run, *arguments)


if __name__ == "__main__":
    stop = Stop().listen(signal.SIGTERM)
    tasks = {"prepare": prepare, "publish": publish}
    # To meet needs torch, which takes longer to import than all else that most tests do.
    meet = rendezvous.join if json.loads(sys.argv[2])["meet"] else lambda handover, *_: handover.run_id
    worker.main(Path(sys.argv[3]), int(sys.argv[4]), stop, lambda _stage: play, tasks, meet)
