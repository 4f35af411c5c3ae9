"""What this launcher runs: the job, the attempt, the node, and the directories. The first step of `launch`."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from finetune_api.contract import AttemptFacts, ResolvedJob, keeps_on_cpu

from finetune_trainer.launcher import jobfile, mounts
from finetune_trainer.launcher.exit_reporter import ExitReporter
from finetune_trainer.launcher.options import LaunchOptions
from finetune_trainer.reporting.status import read_furthest
from finetune_trainer.workspace import fencing
from finetune_trainer.workspace.folders import Folders, layout
from finetune_trainer.workspace.storage import storage_errors

LOCAL_UID = "laptop"
"""The uid of a job that is in no cluster."""
NODE_INDEX = "JOB_COMPLETION_INDEX"
"""Kubernetes sets this variable in the pods of an Indexed Job."""
POD_UID = "FINETUNE_POD_UID"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeRun:
    """One run of a job on one of its nodes."""

    job: ResolvedJob
    attempt: AttemptFacts
    run_id: str
    """The pod's uid, on a laptop a random id."""
    folders: Folders
    node: int
    """Index of this node, from 0."""
    nodes: int
    in_cluster: bool


def read(options: LaunchOptions, reporter: ExitReporter) -> NodeRun:
    """Read the job and the attempt. The reporter gets each fact as soon as it is known, because reading may fail.

    Raises InvalidSpec, and the errors of the workspace.
    """
    attempt = jobfile.read_attempt(options.job_file)
    in_cluster = attempt is not None
    if attempt is not None:
        reporter.attempt, reporter.api = attempt, options.api()
        if reporter.api is None:
            log.warning("This pod has no service account token. Progress and result do not reach the job's status")
    workspace = mounts.workspace_root(options.workspace, in_cluster=in_cluster)
    job = jobfile.read_job(options.job_file, workspace, allow_remote_code=options.allow_remote_code)
    # A laptop is one node, however many nodes the job requests.
    several = in_cluster and options.command == "train" and not (options.keep and keeps_on_cpu(job))
    nodes = job.runtime.nodes if several else 1
    node = reporter.node = int(os.environ.get(NODE_INDEX, "0")) if nodes > 1 else 0
    run_id = (os.environ.get(POD_UID) if in_cluster else None) or uuid4().hex[:8]
    volumes = mounts.volume_folders(job, workspace, options.volumes)
    if attempt is None:
        with storage_errors(workspace):
            workspace.mkdir(parents=True, exist_ok=True)
            reporter.attempt = attempt = _local_attempt(job, workspace, run_id)
    folders = reporter.folders = layout(workspace, job.name, attempt.attempt, run_id, volumes)
    if in_cluster:
        reporter.ledger.name(run_id, read_furthest(folders.reports, attempt.uid))
    return NodeRun(job, attempt, run_id, folders, node, nodes, in_cluster)


def _local_attempt(job: ResolvedJob, workspace: Path, run_id: str) -> AttemptFacts:
    """The facts of a run that no operator started."""
    number = fencing.next_local_attempt(layout(workspace, job.name, 1, run_id, {}), LOCAL_UID)
    return AttemptFacts(namespace="default", name=job.name, uid=LOCAL_UID, attempt=number, job_name=job.name)
