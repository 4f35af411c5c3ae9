"""Jobs of a namespace of a cluster."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

from finetune_cli import jobs, manifest, paths, timeline
from finetune_cli.cluster.client import client
from finetune_cli.logs import pods, reader, show

from finetune.job import Event


class Cluster:
    """A back end of `TrainerClient`."""

    def __init__(self, context: str | None, namespace: str | None, kubeconfig: str | None) -> None:
        self._client = client(context, namespace, kubeconfig)

    def create(self, job: dict[str, Any]) -> str:
        """POST the job."""
        return str(manifest.create(self._client, job)["metadata"]["name"])

    def all(self) -> list[dict[str, Any]]:
        """The jobs of the namespace."""
        return jobs.all_of(self._client)

    def get(self, name: str) -> dict[str, Any]:
        """A job."""
        return jobs.get(self._client, name)

    def logs(self, name: str, follow: bool) -> Iterator[str]:
        """The lines, with their pod before them."""
        job = self.get(name)
        if not follow:
            for pod in pods.of_job(self._client, job):
                if reader.started(pod):
                    for line in reader.lines(self._client.another(), pod, follow=False):
                        yield f"{pods.prefix(pod)} | {line.text}"
            return
        lines: queue.Queue[str | BaseException | None] = queue.Queue(show.HELD_LINES)

        def put(head: str, line: reader.Line) -> None:
            lines.put(f"{head} | {line.text}")

        def read() -> None:
            try:
                show.until_the_end(self._client.another(), job, lambda _: True, {}, put)
                lines.put(None)
            except BaseException as error:
                lines.put(error)

        threading.Thread(target=read, name=f"logs of {name}", daemon=True).start()
        while (came := lines.get()) is not None:
            if isinstance(came, BaseException):
                raise came
            yield came

    def events(self, name: str) -> list[Event]:
        """The events of the job."""
        job = self.get(name)
        found = timeline.events(self._client, name, job["metadata"]["uid"])
        return [Event(entry.time, entry.what, entry.message) for entry in timeline.timeline(job, found)]

    def delete(self, name: str) -> None:
        """Delete the job."""
        self._client.call("DELETE", paths.jobs(self._client.namespace, name))
