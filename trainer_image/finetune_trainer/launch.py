"""PID 1 of the trainer's container: from a job's file to the contract's exit code.

Called by ``__main__`` for ``train`` and ``prepare``. Looks whether there is anything to do, takes the workspace's
fence, starts the ranks (``ranks``, each runs ``worker``), watches over them, and says once how it all ended: in the
log, in status.result, in the termination message and by the exit code. It never imports torch, so a job that is done,
or wrong, ends within a second. Preparing and publishing run in a rank of their own, too: what they import and hold in
memory is gone before training starts, and they can be ended at once whatever a library is busy with.

``prepare`` takes no fence: it writes nothing that a training beside it reads but PREPARED.json, whole or not at all.

Why not torchrun or its agent: docs/decisions/0020-launcher.md.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Literal
from uuid import uuid4

from finetune_api.contract import CONFIG_MAPS, TERMINATION_MESSAGE, VOLUMES, WORKSPACE, AttemptFacts, ResolvedJob
from finetune_api.exit_codes import REASONS, ExitCode
from finetune_api.status import Reason, Result

from finetune_trainer import devices, jobfile, prepared, results, workspace
from finetune_trainer.errors import InvalidSpec, Preempted, Superseded, TrainerError
from finetune_trainer.handover import Handover, end_file, write_deadline
from finetune_trainer.ranks import Ranks
from finetune_trainer.reporting.api import NOBODY_WANTS_IT, ApiServer
from finetune_trainer.reporting.status import apply_result, ask
from finetune_trainer.results import End
from finetune_trainer.run import Folders
from finetune_trainer.stopping import Stop

WORKER = (sys.executable, "-m", "finetune_trainer.worker")
LOCAL_UID = "laptop"
"""Stands for the CR's uid where there is no CR."""
KILL_MARGIN = 15.0
"""Seconds of the grace period that are kept for saying how it ended; half of it where it is short."""
NOTICE = 5.0
"""Seconds in which ranks may find out by themselves why another one failed."""
GIVE_UP = 10.0
"""Seconds from SIGTERM to SIGKILL for the ranks that another one's failure left behind."""
FENCE_INTERVAL = 5.0
TICK = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the command line says; the rest has defaults that only tests change."""

    job_file: Path
    workspace: Path | None = None
    volumes: dict[str, Path] = field(default_factory=dict)
    config_maps: dict[str, Path] = field(default_factory=dict)
    command: Literal["train", "prepare"] = "train"
    allow_remote_code: bool = False
    worker: Sequence[str] = WORKER
    api: Callable[[], ApiServer | None] = ApiServer.of_pod
    termination_message: Path = Path(TERMINATION_MESSAGE)


@dataclass
class Outlet:
    """Where the end is told; filled in as it becomes known who is told."""

    options: Options
    facts: AttemptFacts | None = None
    api: ApiServer | None = None
    folders: Folders | None = None
    owns_folders: bool = False
    """True once the fence is taken: before, nothing in the job's folder is this run's to write."""


def main(options: Options, stop: Stop) -> int:
    """Run the job. Returns the contract's exit code, never raises."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s launch %(message)s")
    outlet = Outlet(options)
    try:
        end = _run(options, stop, outlet)
    except Exception as error:
        end = results.of_error(error, rank=0, workspace=options.workspace or Path(WORKSPACE))
        if end.code == ExitCode.INTERNAL_ERROR and not isinstance(error, TrainerError):
            traceback.print_exc()
    _tell(outlet, end)
    return end.code


def _run(options: Options, stop: Stop, outlet: Outlet) -> End:
    facts = jobfile.read_attempt(options.job_file)
    in_cluster = facts is not None
    if facts is not None:
        outlet.facts, outlet.api = facts, options.api()
        if outlet.api is None:
            log.warning(
                "No API server can be asked (no service account token): no progress will reach the job's status"
            )
    job = jobfile.read_job(options.job_file, allow_remote_code=options.allow_remote_code)
    if job.runtime.nodes != 1:
        raise InvalidSpec(f"spec.resources.nodes: {job.runtime.nodes} given; this image trains on one node")
    root = workspace_root(options, in_cluster=in_cluster)
    run_id = os.environ.get("FINETUNE_POD_UID") if in_cluster else None
    run_id = run_id or uuid4().hex[:8]
    volumes = mounted(job, root, options.volumes)
    with workspace.usable(root):
        if facts is None:
            root.mkdir(parents=True, exist_ok=True)
            outlet.facts = facts = _local_facts(job, root, run_id)
        outlet.folders = folders = workspace.layout(root, job.name, facts.attempt, run_id, volumes)
        earlier = workspace.earlier_result(folders, job)
    if earlier is not None:
        log.info("This job is done already; its artifact is complete")
        message = (
            f"Complete already: jobs/{job.name}/{workspace.RESULT} of an earlier run with the same spec; to train again"
            f" (for instance on changed data under the same path) remove jobs/{job.name} from the workspace or use"
            " another name"
        )
        end = End(ExitCode.DONE, Reason.COMPLETED, message, earlier.artifact, earlier.metrics, earlier.prepared)
        if not to_publish(job, earlier) or options.command == "prepare":
            return end
        log.info("It has not been published yet")

    with config_maps(options.config_maps) as maps:
        alone = Handover(job, facts, run_id, root, volumes, maps, 1, 1, outlet.api, "prepare")
        if options.command == "prepare":
            with workspace.usable(root):
                folders.reports.mkdir(parents=True, exist_ok=True)
            outlet.owns_folders = True
            return _run_ranks(alone, folders, Event(), stop, options.worker, {})

        visible = devices.visible_gpus()
        ranks = devices.ranks_on_node(job, visible, in_cluster=in_cluster)
        handover = replace(alone, ranks_on_node=ranks, world_size=ranks, task="train")
        devices.check_batch(job, handover.micro_batch_size, handover.world_size)
        with workspace.usable(root):
            fence = workspace.claim(folders, job, facts, run_id)
            outlet.owns_folders = True
            workspace.clear_leftovers(folders, fence)
        lost_fence = _watch_fence(folders, fence)
        if earlier is None:
            if prepared.read(folders, job) is None:
                log.info("Nothing is prepared for this job yet: doing so first, on the CPU")
                end = _run_ranks(alone, folders, lost_fence, stop, options.worker, {})
                if end.code != ExitCode.DONE:
                    return end
            environment = devices.environment(job, visible, in_cluster=in_cluster)
            end = _run_ranks(handover, folders, lost_fence, stop, options.worker, environment)
            if end.code != ExitCode.DONE:
                return end
            with workspace.usable(root):
                workspace.keep_result(folders, fence, results.to_result(end, facts.attempt))
        if job.output.uri is not None:
            end = _run_ranks(replace(alone, task="publish"), folders, lost_fence, stop, options.worker, {})
            if end.code == ExitCode.DONE:
                with workspace.usable(root):
                    workspace.keep_result(folders, fence, results.to_result(end, facts.attempt))
        return end


def to_publish(job: ResolvedJob, result: Result) -> bool:
    """Whether an artifact that is complete has yet to be copied to where the job wants it."""
    return job.output.uri is not None and result.artifact is not None and result.artifact.published is None


def workspace_root(options: Options, *, in_cluster: bool) -> Path:
    """The workspace's folder."""
    return options.workspace or (Path(WORKSPACE) if in_cluster else Path("workspace"))


@contextmanager
def config_maps(named: dict[str, Path]) -> Iterator[Path]:
    """Folder with <name>/<key>: the pod's, or one of links to the folders that the command line names."""
    if not named:
        yield Path(CONFIG_MAPS)
        return
    folder = Path(tempfile.mkdtemp(prefix="finetune-configmaps-"))
    try:
        for name, there in named.items():
            (folder / name).symlink_to(there.resolve(), target_is_directory=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def mounted(job: ResolvedJob, root: Path, named: dict[str, Path]) -> dict[str, Path]:
    """Claim -> folder: what the pod has under /volumes, what the command line names, and the workspace's own claim."""
    below = Path(VOLUMES)
    pods = {folder.name: folder for folder in below.iterdir() if folder.is_dir()} if below.is_dir() else {}
    return {job.workspace_claim: root, **pods, **named}


def _local_facts(job: ResolvedJob, root: Path, run_id: str) -> AttemptFacts:
    """The facts of a run that no operator started."""
    attempt = workspace.next_local_attempt(workspace.layout(root, job.name, 1, run_id, {}), LOCAL_UID)
    return AttemptFacts(namespace="default", name=job.name, uid=LOCAL_UID, attempt=attempt, job_name=job.name)


def _run_ranks(
    handover: Handover,
    folders: Folders,
    lost_fence: Event,
    stop: Stop,
    command: Sequence[str],
    environment: dict[str, str],
) -> End:
    """Start the ranks and see them to their end."""
    if stop.requested:
        raise Preempted(f"Told to stop before it began to {handover.task}; there was nothing to save")
    log.info(
        "Job %s, attempt %s, run %s: %s with %s rank(s)",
        handover.job.name,
        handover.facts.attempt,
        handover.run_id,
        handover.task,
        handover.world_size,
    )
    folder = Path(tempfile.mkdtemp(prefix="finetune-run-"))
    try:
        handover.write(folder)
        ranks = Ranks(command, handover, folder, environment)
        try:
            _watch(ranks, handover, folders, folder, stop, lost_fence)
        finally:
            ranks.kill()
        return results.combine([_end_of(rank, ranks, folder, stop) for rank in sorted(ranks.codes)])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch(ranks: Ranks, handover: Handover, folders: Folders, folder: Path, stop: Stop, lost_fence: Event) -> None:
    """Until every rank has ended, or is to be ended by force.

    Raises Superseded when nobody wants the result: a rank in the middle of a long step would not listen, and there is
    nothing worth a save.
    """
    heard = 0
    deadline = float("inf")
    failed_at: float | None = None
    while ranks.alive:
        time.sleep(TICK)
        ranks.reap()
        now = time.monotonic()
        if lost_fence.is_set():
            raise Superseded(f"A later run has taken over {folders.job}: this one ends without a save")
        if ExitCode.SUPERSEDED in ranks.codes.values() or stop.interrupts > 1:
            return
        if stop.count > heard:
            first, heard = heard == 0, stop.count
            grace = handover.facts.grace_period_seconds
            # Only training has something to save.
            saving = saving_seconds(grace) if handover.task == "train" else min(NOTICE, saving_seconds(grace))
            left = stop.at + saving - now
            answer = ask(handover.api, handover.facts, folders.reports, max(0.0, left / 3))
            if answer in NOBODY_WANTS_IT:
                raise Superseded(f"Told to stop, and nobody wants the result ({answer.value}): ending without a save")
            if first:
                deadline = min(deadline, stop.at + saving)
                log.info("Told to stop: the ranks have %.0f s to end", deadline - time.monotonic())
                write_deadline(folder, deadline)
                ranks.tell()
        elif not stop.requested and failed_at is None and any(ranks.codes.values()):
            failed_at = now
            deadline = now + NOTICE + GIVE_UP
        if failed_at is not None and now > failed_at + NOTICE:
            ranks.tell()
        if now > deadline:
            return


def saving_seconds(grace: float) -> float:
    """How much of the grace period is the ranks'."""
    return grace - min(KILL_MARGIN, grace / 2)


def _watch_fence(folders: Folders, fence: workspace.Fence) -> Event:
    """Set when a later run has taken the fence. In a thread of its own: a file server that hangs must not keep SIGTERM
    from the ranks."""
    lost = Event()

    def watch() -> None:
        while not lost.wait(FENCE_INTERVAL):
            try:
                workspace.check_fence(folders, fence)
            except Superseded as error:
                log.warning("%s", error)
                lost.set()
            except (OSError, TrainerError) as error:
                log.warning("%s can't be checked: %s", workspace.FENCE, error)

    Thread(target=watch, name="fence", daemon=True).start()
    return lost


def _end_of(rank: int, ranks: Ranks, folder: Path, stop: Stop) -> End:
    """How one rank ended: by its own word when that fits its exit code, else by the code."""
    code = ranks.codes[rank]
    by_us = (rank in ranks.killed and code == -signal.SIGKILL) or (ranks.told and code == -signal.SIGTERM)
    superseded = ExitCode.SUPERSEDED in ranks.codes.values()
    if by_us and stop.requested and not superseded:
        what = "had not begun" if rank not in ranks.killed else "had not saved in time"
        return End(ExitCode.DISRUPTED, REASONS[ExitCode.DISRUPTED], f"Told to stop; rank {rank} {what}")
    if by_us or (ranks.told and not stop.requested and code == ExitCode.DISRUPTED):
        return End(results.KILLED, Reason.KILLED, f"Rank {rank} was ended because another one failed", forced=True)
    if code < 0 or code > 128:
        return results.of_signal(-code if code < 0 else code - 128, rank)
    said = results.read_end(end_file(folder, rank))
    if said is not None and said.code == code:
        return said
    internal = ExitCode.INTERNAL_ERROR
    message = f"Rank {rank} ended with exit code {code} and without a result: what happened is in the pod's log"
    return End(internal, REASONS[internal], message)


def _tell(outlet: Outlet, end: End) -> None:
    """Say how the run ended, to whoever listens. Best effort: the exit code says the most important part."""
    facts, folders = outlet.facts, outlet.folders
    attempt, kind = facts.attempt if facts else 0, outlet.options.command
    level = logging.ERROR if end.code else logging.INFO
    log.log(level, "Ended with %s (%s): %s", end.code, end.reason, end.message)
    pointer = ""
    result = results.to_result(end, attempt, kind=kind)
    wanted = end.code != ExitCode.SUPERSEDED
    if folders is not None and outlet.owns_folders and wanted and results.is_cut(end, result):
        file = folders.reports / f"end-{folders.run_checkpoints.name}.json"
        try:
            results.write_end(file, end)
            pointer = f"(the whole is in {file.relative_to(folders.workspace)} of the workspace)"
        except OSError as error:
            log.warning("%s can't be written: %s", file, error)
        result = results.to_result(end, attempt, pointer, kind)
    # First, as it takes no time. The kubelet makes the file; where there is none, nobody reads it.
    if outlet.options.termination_message.exists():
        try:
            outlet.options.termination_message.write_bytes(results.termination_message(result, pointer))
        except OSError as error:
            log.warning("The termination message can't be written: %s", error)
    if facts is not None and wanted:
        apply_result(outlet.api, facts, folders.reports if folders else Path(os.devnull), result)
