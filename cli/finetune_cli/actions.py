"""What a user asks of jobs that exist: suspend, resume, retry, stop. Each is one patch of the spec."""

from collections.abc import Callable, Sequence
from typing import Any

from finetune_cli import flags, jobs, paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.output import warn
from finetune_cli.problem import Exit, Problem

Action = Callable[[Client, Object], str]


def each(client: Client, names: Sequence[str], action: Action) -> None:
    """Act on each job. All are tried; a failure is raised at the end."""
    failures = []
    for name in names:
        try:
            print(f"finetunejob/{name} {action(client, jobs.get(client, name))}")
        except Problem as problem:
            if len(names) > 1:
                warn(f"{name}: {problem}")
            failures.append(problem)
    if failures:
        raise failures[0] if len(names) == 1 else Problem(f"{len(failures)} of {len(names)} failed", failures[0].code)


def suspend(client: Client, job: Object) -> str:
    """spec.suspend = true."""
    _must_not_have_ended(job, "suspended")
    if job["spec"].get("suspend"):
        return "is suspended already"
    _patch(client, job, {"suspend": True})
    return "saves its state and is suspended"


def resume(client: Client, job: Object, settings: Sequence[str] = ()) -> str:
    """spec.suspend = false, after changes that are possible only while the job is suspended."""
    _must_not_have_ended(job, "resumed")
    if settings:
        change: dict[str, Any] = {"spec": {}}
        flags.change(change, settings)
        job = _patch(client, job, change["spec"])
    if not job["spec"].get("suspend"):
        return "is not suspended"
    _patch(client, job, {"suspend": False})
    return "resumed"


def retry(client: Client, job: Object) -> str:
    """spec.retry above status.retry."""
    if jobs.phase(job) != "Failed":
        raise Problem(
            f"{job['metadata']['name']} is {jobs.phase(job)}: only a job that has Failed can be tried again.",
            Exit.REFUSED,
        )
    number = max(jobs.status(job).get("retry") or 0, job["spec"].get("retry") or 0) + 1
    change: dict[str, Any] = {"retry": number}
    if job["spec"].get("suspend"):
        change["suspend"] = False
    _patch(client, job, change)
    return f"is open again (retry {number})"


def stop(client: Client, job: Object) -> str:
    """spec.stop = keep."""
    _must_not_have_ended(job, "stopped")
    if job["spec"].get("stop"):
        return "ends already"
    _patch(client, job, {"stop": "keep"})
    return "ends its training, and makes the artifact of what was trained"


def _patch(client: Client, job: Object, spec: dict[str, Any]) -> Object:
    """The uid makes the API server refuse the change if another job has the name by now."""
    metadata = job["metadata"]
    path = paths.jobs(metadata["namespace"], metadata["name"])
    return client.patch(path, {"metadata": {"uid": metadata["uid"]}, "spec": spec}, fieldManager="kubectl-finetune")


def _must_not_have_ended(job: Object, done: str) -> None:
    if jobs.phase(job) in jobs.FINAL:
        raise Problem(f"{job['metadata']['name']} has ended ({jobs.phase(job)}), so it cannot be {done}.", Exit.REFUSED)
