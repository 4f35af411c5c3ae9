"""From the cache, and from the server where the cache isn't enough, to what a plan looks at.

Live reads are for the moments that matter: before a Job is created, when one has ended, and when pods hang without
saying why.
"""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.status import Attempt, FineTuneJobStatus

from finetune_operator.cache import Cache
from finetune_operator.cluster import Cluster, owners
from finetune_operator.names import Kind
from finetune_operator.observed import (
    BatchView,
    EventView,
    JobView,
    Key,
    Observed,
    PodView,
    batch_view,
    event_view,
    job_view,
    parse_time,
    pod_view,
)
from finetune_operator.plan.attempts import current, kind_due
from finetune_operator.plan.conditions import is_terminal
from finetune_operator.plan.startup import needs_events


@dataclass(frozen=True)
class Observer:
    """Reads for one operator."""

    cache: Cache
    cluster: Cluster

    async def observe(self, key: Key, now: datetime) -> tuple[JobView, Observed] | None:
        """The FineTuneJob and its children; None when there is nothing to plan for."""
        view = self.cache.job(key)
        if view is None or view.deleting:
            return None
        status = FineTuneJobStatus.model_validate(view.status)
        batches = tuple(batch for batch in self.cache.batches.of(key) if batch.owner_uid == view.uid)
        kind = kind_due(status, batches)
        attempt = current(status, kind)
        if is_terminal(status) or attempt is None or attempt.state == "Ended":
            return view, Observed(batches)
        batch = Observed(batches).of(kind).batch(attempt.number)
        refused = ""
        if batch is None or batch.finished:
            fresh = await self._live_job(view)
            if fresh is None:
                return None
            view = fresh
        if batch is None:
            batch, refused = await self._live_batch(view, attempt)
            batches = (*batches, batch) if batch else batches
        pods = await self._pods(key, kind, attempt, live=batch is None or batch.finished)
        events: tuple[EventView, ...] = ()
        ranks = int(view.spec.get("resources", {}).get("nodes", 1)) if kind == "train" else 1
        if batch and not batch.finished and needs_events(pods, ranks, parse_time(attempt.start_time), now):
            events = await self._events(batch, pods)
        return view, Observed(batches, pods, events, refused)

    async def _live_job(self, view: JobView) -> JobView | None:
        """The FineTuneJob as it is now: a Job is about to be made for it, or an attempt to be judged by what its
        trainer last wrote."""
        raw = await self.cluster.get_job(view.key)
        if raw is None or raw["metadata"]["uid"] != view.uid:
            self.cache.jobs.drop(view)
            return None
        fresh = job_view(raw)
        self.cache.jobs.put(fresh)
        return None if fresh.deleting else fresh

    async def _live_batch(self, view: JobView, attempt: Attempt) -> tuple[BatchView | None, str]:
        raw = await self.cluster.get_batch(view.namespace, attempt.job)
        if raw is None:
            return None, ""
        batch = batch_view(raw)
        if view.uid not in owners(raw) or batch is None:
            return None, f"A Job named {attempt.job} exists that is not this job's: delete or rename it."
        self.cache.batches.put(batch)
        return batch, ""

    async def _pods(self, key: Key, kind: Kind, attempt: Attempt, *, live: bool) -> tuple[PodView, ...]:
        if live:
            seen = [view for raw in await self.cluster.pods_of(key, kind, attempt.number) if (view := pod_view(raw))]
        else:
            pods = self.cache.pods.of(key)
            seen = [view for view in pods if view.kind == kind and view.attempt == attempt.number]
        # A job deleted and made anew has the same name, but other Jobs.
        return tuple(view for view in seen if view.name.startswith(attempt.job + "-"))

    async def _events(self, batch: BatchView, pods: tuple[PodView, ...]) -> tuple[EventView, ...]:
        about = [batch.uid, *(pod.uid for pod in pods if not pod.running and not pod.gone)]
        raws = [raw for uid in about[:5] for raw in await self.cluster.events_about(batch.key[0], uid)]
        return tuple(event_view(raw) for raw in raws)
