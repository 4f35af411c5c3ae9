"""The client of notebooks and programs."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from finetune_cli import flags, manifest
from finetune_cli.problem import Exit, Problem

from finetune.job import COMPLETE, Event, Job

FINAL = {"Succeeded", "Failed"}


class Backend(Protocol):
    """What runs jobs: a cluster, or this machine."""

    def create(self, job: dict[str, Any]) -> str: ...
    def all(self) -> list[dict[str, Any]]: ...
    def get(self, name: str) -> dict[str, Any]: ...
    def logs(self, name: str, follow: bool) -> Iterator[str]: ...
    def events(self, name: str) -> list[Event]: ...
    def delete(self, name: str) -> None: ...


class TrainerClient:
    """Jobs of one namespace of a cluster ("cluster"), or on this machine ("local").

    `namespace`, `context` and `kubeconfig` say which cluster. `workspace` is the folder for local results, and
    `volumes` maps the claims that jobs name to folders.
    """

    def __init__(
        self,
        backend: str = "cluster",
        *,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | None = None,
        workspace: str | Path = "workspace",
        volumes: dict[str, str | Path] | None = None,
    ) -> None:
        self._backend: Backend
        if backend == "cluster":
            from finetune.cluster import Cluster

            self._backend = Cluster(context, namespace, kubeconfig)
        elif backend == "local":
            from finetune.laptop import Laptop

            self._backend = Laptop(Path(workspace), {name: Path(place) for name, place in (volumes or {}).items()})
        else:
            raise Problem(f"{backend} is no back end: use cluster or local")

    def train(
        self,
        job: dict[str, Any] | str | Path | None = None,
        *,
        stage: str = "sft",
        model: str | None = None,
        from_job: str | None = None,
        dataset: str | Sequence[str] = (),
        settings: dict[str, Any] | None = None,
        **more: Any,
    ) -> str:
        """Create a job: a FineTuneJob as a dictionary or a file, or the arguments of `finetune run`. `settings` maps
        fields below spec to values, such as {"training.learningRate": 2e-5}. Returns the name."""
        if job is None:
            named = [dataset] if isinstance(dataset, str) else list(dataset)
            made = flags.job_of(stage=stage, model=model, from_job=from_job, datasets=named, **more)
        else:
            made = dict(job) if isinstance(job, dict) else manifest.jobs_of(str(job))[0]
        for field, value in (settings or {}).items():
            manifest.set_field(made, field, value)
        manifest.check(made, "The job")
        return self._backend.create(made)

    def list_jobs(self) -> list[Job]:
        """All jobs, oldest first."""
        return [Job(found) for found in self._backend.all()]

    def get_job(self, name: str) -> Job:
        """A job. Raises Problem if it does not exist."""
        return Job(self._backend.get(name))

    def get_job_logs(self, name: str, follow: bool = False) -> Iterator[str]:
        """The lines of the logs of all pods; with `follow`, until the job ends."""
        return self._backend.logs(name, follow)

    def get_job_events(self, name: str) -> list[Event]:
        """What Kubernetes reports about the job."""
        return self._backend.events(name)

    def wait_for_job_status(
        self,
        name: str,
        status: set[str] | None = None,
        timeout: float = 600,
        polling_interval: float = 2,
        callbacks: Sequence[Callable[[Job], None]] = (),
    ) -> Job:
        """Wait until the job is in one of these states (default: Complete), and call back with each look at it. Raises
        Problem if it ends in another state, or if the time is over. An API server that restarts is waited for."""
        wanted = status or {COMPLETE}
        end = time.monotonic() + timeout
        job = None
        while True:
            try:
                job = self.get_job(name)
            except Problem as problem:
                if job is None or problem.code is not Exit.UNREACHABLE or time.monotonic() >= end:
                    raise
                time.sleep(polling_interval)
                continue
            for callback in callbacks:
                callback(job)
            if job.is_in(wanted):
                return job
            if job.ended:
                raise Problem(f"The job {name} has ended as {job.status}: {job.message}", Exit.FAILED)
            if time.monotonic() >= end:
                text = f"The {timeout:g} seconds of timeout are over, and the job {name} continues. It is {job.status}"
                raise Problem(": ".join(part for part in (text, job.message) if part), Exit.TIMEOUT)
            time.sleep(polling_interval)

    def delete_job(self, name: str) -> None:
        """Delete the job. What it wrote to its workspace stays."""
        self._backend.delete(name)
