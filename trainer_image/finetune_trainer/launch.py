"""PID 1 of the trainer's container: from a job's file to the contract's exit code.

Called by ``__main__`` for ``train`` and ``prepare``. Looks whether there is anything to do, takes the workspace's
fence, starts the ranks (``ranks``, each runs ``worker``), watches over them (``watch``), and says once how it all ended
(``outlet``). It never imports torch, so a job that is done, or wrong, ends within a second. Preparing and publishing
run in a rank of their own, too: what they import and hold in memory is gone before training starts, and they can be
ended at once whatever a library is busy with.

With several nodes there is one launcher on each, and what there is one of is node 0's: the fence, preparing, publishing
and RESULT.json. The others start their ranks, which meet rank 0 (``rendezvous``).

``prepare`` takes no fence: it writes nothing that a training beside it reads but PREPARED.json, whole or not at all.

Why not torchrun or its agent: docs/decisions/0020-launcher.md.
"""

import logging
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Literal
from uuid import uuid4

from finetune_api.contract import CONFIG_MAPS, TERMINATION_MESSAGE, VOLUMES, WORKSPACE, AttemptFacts, ResolvedJob
from finetune_api.exit_codes import ExitCode
from finetune_api.source import PvcPath, parse
from finetune_api.status import Reason, Result

from finetune_trainer import devices, fencing, hostmemory, jobfile, prepared, results, workspace
from finetune_trainer.errors import Preempted, RendezvousFailed, Superseded, TrainerError
from finetune_trainer.fetch import pins
from finetune_trainer.handover import RENDEZVOUS_SECONDS, Handover
from finetune_trainer.outlet import Outlet
from finetune_trainer.ranks import Ranks
from finetune_trainer.reporting import status
from finetune_trainer.reporting.api import ApiServer
from finetune_trainer.results import End
from finetune_trainer.stillness import Bounds
from finetune_trainer.stopping import Stop
from finetune_trainer.watch import Watch

WORKER = (sys.executable, "-m", "finetune_trainer.worker")
LOCAL_UID = "laptop"
"""Stands for the CR's uid where there is no CR."""
PORT = 29500
"""Where rank 0 is met, on the pod of node 0."""
NODE_INDEX = "JOB_COMPLETION_INDEX"
"""Kubernetes' variable in the pods of an Indexed Job."""

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
    meet_at: tuple[str, int] | None = None
    """Host and port of rank 0, where it isn't the pod of node 0."""
    rendezvous_seconds: float = RENDEZVOUS_SECONDS
    bounds: Bounds = field(default_factory=Bounds)


def main(options: Options, stop: Stop) -> int:
    """Run the job. Returns the contract's exit code, never raises."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s launch %(message)s")
    outlet = Outlet(options.command, options.termination_message)
    try:
        end = _run(options, stop, outlet)
    except Exception as error:
        end = results.of_error(error, rank=0, workspace=options.workspace or Path(WORKSPACE))
        if end.code == ExitCode.INTERNAL_ERROR and not isinstance(error, TrainerError):
            traceback.print_exc()
    outlet.tell(end)
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
    root = workspace_root(options, in_cluster=in_cluster)
    job = jobfile.read_job(options.job_file, root, allow_remote_code=options.allow_remote_code)
    # A laptop is one node, whatever the job asks of a cluster.
    nodes = job.runtime.nodes if in_cluster and options.command == "train" else 1
    node = outlet.node = int(os.environ.get(NODE_INDEX, "0")) if nodes > 1 else 0
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
        if not to_publish(job, earlier) or options.command == "prepare" or node > 0:
            return end
        log.info("It has not been published yet")

    with config_maps(options.config_maps) as maps:
        alone = Handover(job, facts, run_id, root, volumes, maps, 1, 1, outlet.api, "prepare")
        if options.command == "prepare":
            with workspace.usable(root):
                folders.reports.mkdir(parents=True, exist_ok=True)
            outlet.owns_folders = True
            return _run_ranks(options, alone, Event(), stop)

        visible = devices.visible_gpus()
        ranks = devices.ranks_on_node(job, visible, in_cluster=in_cluster)
        host, port = options.meet_at or _meeting_point(facts, nodes)
        training = replace(
            alone,
            ranks_on_node=ranks,
            world_size=nodes * ranks,
            task="train",
            node=node,
            host=host,
            port=port,
            rendezvous_seconds=options.rendezvous_seconds,
        )
        devices.check_batch(job, training.micro_batch_size, training.world_size)
        environment = devices.environment(job, visible, in_cluster=in_cluster)
        if node > 0:
            lost_fence = fencing.follow(folders, facts)
            _wait_until_prepared(training, lost_fence, stop)
            end = _run_ranks(options, training, lost_fence, stop, environment)
            # The connection to node 0 breaks as soon as that gives way; the fence says why, at the next look at it.
            if end.code == ExitCode.INTERNAL_ERROR and lost_fence.wait(2 * fencing.INTERVAL):
                raise Superseded(f"A later run has taken over {folders.job}: node 0 gave way to it")
            return end

        with workspace.usable(root):
            fence = workspace.claim(folders, job, facts, run_id)
            outlet.owns_folders = True
            workspace.clear_leftovers(folders, fence)
        lost_fence = fencing.hold(folders, fence)
        if earlier is None:
            ready = prepared.read(folders, job)
            if ready is None:
                log.info("Nothing is prepared for this job yet: doing so first, on the CPU")
                end = _run_ranks(options, alone, lost_fence, stop)
                if end.code != ExitCode.DONE:
                    return end
            else:
                pins.check_again(job, ready.digests, alone.places, lambda: _check_stop(stop, "train"))
            end = _run_ranks(options, training, lost_fence, stop, environment)
            if end.code != ExitCode.DONE:
                return end
            with workspace.usable(root):
                workspace.keep_result(folders, fence, results.to_result(end, facts.attempt))
        if job.output.uri is not None:
            end = _run_ranks(options, replace(alone, task="publish"), lost_fence, stop)
            if end.code == ExitCode.DONE:
                with workspace.usable(root):
                    workspace.keep_result(folders, fence, results.to_result(end, facts.attempt))
        return end


def _meeting_point(facts: AttemptFacts, nodes: int) -> tuple[str, int]:
    """Where rank 0 is met: node 0's pod by its name behind the headless Service, or here, at a port that is free."""
    if nodes > 1:
        return f"{facts.job_name}-0.{facts.job_name}", PORT
    with socket.create_server(("127.0.0.1", 0)) as free:
        return "127.0.0.1", int(free.getsockname()[1])


def _wait_until_prepared(handover: Handover, lost_fence: Event, stop: Stop) -> None:
    """Node 0 prepares where nobody did before. That may take long: what counts is that it says something."""
    if prepared.read(handover.folders, handover.job) is not None:
        return
    log.info("Nothing is prepared for this job yet: waiting for node 0 to do so")
    file = handover.folders.reports / status.FILE
    sign, since = 0.0, time.monotonic()
    while prepared.read(handover.folders, handover.job) is None:
        said = file.stat().st_mtime if file.exists() else 0.0
        if said != sign:
            sign, since = said, time.monotonic()
        if stop.requested:
            raise Preempted("Told to stop while node 0 prepared; there was nothing to save")
        if time.monotonic() - since > handover.rendezvous_seconds:
            raise RendezvousFailed(
                f"Nothing is prepared for this job, and node 0, which is to do so, has said nothing for"
                f" {handover.rendezvous_seconds:.0f} s: see what its pod says"
            )
        if lost_fence.wait(1.0):
            raise Superseded(f"A later run has taken over {handover.folders.job}")


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
    """Claim -> folder: what the pod has under /volumes, what the command line names, and the workspace's own claim. A
    laptop has one workspace for all jobs."""
    below = Path(VOLUMES)
    pods = {folder.name: folder for folder in below.iterdir() if folder.is_dir()} if below.is_dir() else {}
    places = [parse(one.artifact.uri) for one in job.references]
    theirs = {place.claim: root for place in places if isinstance(place, PvcPath)}
    return {**theirs, job.workspace_claim: root, **pods, **named}


def _local_facts(job: ResolvedJob, root: Path, run_id: str) -> AttemptFacts:
    """The facts of a run that no operator started."""
    attempt = workspace.next_local_attempt(workspace.layout(root, job.name, 1, run_id, {}), LOCAL_UID)
    return AttemptFacts(namespace="default", name=job.name, uid=LOCAL_UID, attempt=attempt, job_name=job.name)


def _check_stop(stop: Stop, task: str) -> None:
    if stop.requested:
        raise Preempted(f"Told to stop before it began to {task}; there was nothing to save")


def _run_ranks(
    options: Options, handover: Handover, lost_fence: Event, stop: Stop, environment: dict[str, str] | None = None
) -> End:
    """Start the ranks and see them to their end."""
    _check_stop(stop, handover.task)
    log.info(
        "Job %s, attempt %s, run %s: %s with %s of %s rank(s)",
        handover.job.name,
        handover.facts.attempt,
        handover.run_id,
        handover.task,
        len(handover.ranks),
        handover.world_size,
    )
    folder = Path(tempfile.mkdtemp(prefix="finetune-run-"))
    try:
        handover.write(folder)
        watch = Watch(handover, folder, stop, lost_fence, options.bounds, hostmemory.read())
        return watch.see_to_the_end(Ranks(options.worker, handover, folder, environment or {}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
