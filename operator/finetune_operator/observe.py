"""From the cache, and from the server where the cache isn't enough, to what a plan looks at.

Live reads are for the moments that matter: while a job is not accepted because of others, where its status was wiped,
before an attempt is begun and its Job created, when one has ended, and when pods hang without saying why.
"""

import logging
from dataclasses import dataclass
from datetime import datetime

from finetune_api.status import Attempt, FineTuneJobStatus

from finetune_operator.cache import Cache
from finetune_operator.cluster import ApiError, Cluster, owners
from finetune_operator.names import Kind
from finetune_operator.observed import (
    BatchView,
    EventView,
    Fixed,
    JobView,
    Key,
    Observed,
    Others,
    PodView,
    Raw,
    batch_view,
    claim_modes,
    claim_view,
    event_view,
    fixed_by,
    job_view,
    least_gpu_memory,
    parse_time,
    pod_view,
)
from finetune_operator.plan.attempts import current, kind_due
from finetune_operator.plan.conditions import is_terminal
from finetune_operator.plan.references import ring
from finetune_operator.plan.startup import needs_events

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Observer:
    """Reads for one operator."""

    cache: Cache
    cluster: Cluster
    read_node_labels: bool = False

    async def observe(self, key: Key, now: datetime) -> tuple[JobView, Observed] | None:
        """The FineTuneJob and its children; None when there is nothing to plan for."""
        view = self.cache.job(key)
        if view is None or view.deleting:
            return None
        status = FineTuneJobStatus.model_validate(view.status)
        batches = tuple(batch for batch in self.cache.batches.of(key) if batch.owner_uid == view.uid)
        kind = kind_due(status, batches)
        attempt = current(status, kind)
        if is_terminal(status):
            return view, Observed(batches)
        if attempt is None or attempt.state == "Ended":
            lives = any(not batch.finished for batch in batches)
            modes = None if lives else await self._workspace_modes(view)
            fixed = await self._fixed(batches) if status.resolved is None else None
            others = Others() if fixed else await self._others(view)
            return view, Observed(batches, workspace_modes=modes, others=others, fixed=fixed)
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
        if batch is None and attempt.state == "Starting" and attempt.reason is None:
            modes = await self._workspace_modes(view)
            memory = await self._gpu_memory(view) if kind == "prepare" else None
            pods = await self._pods(key, kind, attempt, live=True)
            return view, Observed(batches, pods, refused=refused, workspace_modes=modes, gpu_memory_bytes=memory)
        pods = await self._pods(key, kind, attempt, live=batch is None or batch.finished)
        events: tuple[EventView, ...] = ()
        nodes = int(_resources(view).get("nodes", 1)) if kind == "train" else 1
        if batch and not batch.finished and needs_events(pods, nodes, parse_time(attempt.start_time), now):
            events = await self._events(batch, pods)
        return view, Observed(batches, pods, events, refused)

    async def _others(self, view: JobView) -> Others:
        """Read live, as are all members of a ring: a job that fails for what another one was would fail for good."""

        def waits_for(name: str) -> set[str]:
            other = self.cache.job((view.namespace, name))
            return other.waits_for if other and not other.deleting else set()

        jobs = {name: other for name in view.waits_for if (other := await self._other((view.namespace, name)))}
        read, found = {view.name, *view.waits_for}, ring(view.name, waits_for)
        while unread := set(found) - read:
            for name in unread:
                await self._other((view.namespace, name))
            read, found = read | unread, ring(view.name, waits_for)
        raws = {name: await self.cluster.get_claim(view.namespace, name) for name in {o.claim for o in jobs.values()}}
        claims = {name: claim for name, raw in raws.items() if raw and (claim := claim_view(raw))}
        return Others(jobs, claims, found)

    async def _other(self, key: Key) -> JobView | None:
        known = self.cache.job(key)
        raw = await self.cluster.get_job(key)
        fresh = job_view(raw) if raw else None
        if known is not None and (fresh is None or fresh.uid != known.uid):
            self.cache.jobs.drop(known)
        if fresh is not None and self.cache.jobs.put(fresh):
            # What its own watch will show of it is no news any more, so nobody else would look after it.
            self.cache.jobs.wake(key)
        return fresh

    async def _fixed(self, batches: tuple[BatchView, ...]) -> Fixed | None:
        """From the newest Job that is still there."""
        for batch in sorted(batches, key=lambda batch: batch.created, reverse=True):
            raw = await self.cluster.get_batch(batch.key[0], batch.name)
            if raw is not None and raw["metadata"]["uid"] == batch.uid:
                return fixed_by(raw)
        return None

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

    async def _workspace_modes(self, view: JobView) -> tuple[str, ...] | None:
        """How the user's claim may be mounted, where that matters: by pods on several nodes."""
        name = (view.spec.get("workspace") or {}).get("claimName")
        if not name or int(_resources(view).get("nodes", 1)) == 1:
            return None
        raw = await self.cluster.get_claim(view.namespace, name)
        return claim_modes(raw) if raw else None

    async def _gpu_memory(self, view: JobView) -> int | None:
        """The least memory of a GPU among the nodes that the job's nodeSelector leaves, by the label that NVIDIA's GPU
        feature discovery gives them. Only the estimate that preparing makes uses it."""
        wanted = _resources(view)
        resource = wanted.get("gpuResource", "nvidia.com/gpu")
        if not self.read_node_labels or wanted.get("gpuMemory") or not wanted.get("gpusPerNode", 1):
            return None
        label = f"{resource}.memory"
        selector = [label, *(f"{key}={value}" for key, value in (wanted.get("nodeSelector") or {}).items())]
        try:
            nodes = await self.cluster.node_labels(",".join(selector))
        except ApiError as error:
            if error.status != 403:
                raise
            log.warning("cannot read the nodes' labels, so estimates are not held against them: %s", error)
            return None
        return least_gpu_memory(labels.get(label, "") for labels in nodes)

    async def _events(self, batch: BatchView, pods: tuple[PodView, ...]) -> tuple[EventView, ...]:
        about = [batch.uid, *(pod.uid for pod in pods if not pod.running and not pod.gone)]
        raws = [raw for uid in about[:5] for raw in await self.cluster.events_about(batch.key[0], uid)]
        return tuple(event_view(raw) for raw in raws)


def _resources(view: JobView) -> Raw:
    return view.spec.get("resources") or {}
