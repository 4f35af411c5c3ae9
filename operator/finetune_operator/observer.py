"""Reads the state of the cluster: from the cache, and live where a plan needs more than the cache.

The plan decides what to read (`plan.Need`); this module only executes it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from finetune_api.job import KIND
from finetune_api.status import Attempt

from finetune_operator.cache import Cache
from finetune_operator.cluster import ApiError, Cluster, owners
from finetune_operator.cluster.reads import KUEUE_VERSIONS
from finetune_operator.event_reader import EventReader
from finetune_operator.names import Kind, job_prefix, notification_name
from finetune_operator.plan import Need
from finetune_operator.plan.cycles import find_cycle
from finetune_operator.views.child_job import AcceptedTerms, ChildJobView, accepted_terms, child_job_view
from finetune_operator.views.claim import claim_view
from finetune_operator.views.job import JobView, job_view
from finetune_operator.views.metadata import Key, section
from finetune_operator.views.node import least_gpu_memory
from finetune_operator.views.pod import PodView, pod_view
from finetune_operator.views.presets import presets_view
from finetune_operator.views.service import ServiceView, service_view
from finetune_operator.views.snapshot import Dependencies, Read, Snapshot
from finetune_operator.views.workload import QueueView, position_of, workload_view

log = logging.getLogger(__name__)

CLAIM = "PersistentVolumeClaim"


@dataclass(frozen=True)
class Observer:
    """The reads of one operator."""

    cache: Cache
    cluster: Cluster
    event_reader: EventReader

    def snapshot(self, view: JobView) -> Snapshot:
        """What the watches have shown of the FineTuneJob's children and of the jobs that it depends on, and the events
        that are known about the children."""
        children = tuple(child for child in self.cache.child_jobs.of(view.key) if child.owner_uid == view.uid)
        # A FineTuneJob that was deleted and recreated has the same name, but other child jobs.
        prefix = job_prefix(view.name, view.uid)
        pods = tuple(pod for pod in self.cache.pods.of(view.key) if pod.name.startswith(prefix))
        events = self.event_reader.about([*(child.uid for child in children), *(pod.uid for pod in pods)])
        others = {name: other for name in view.dependencies if (other := self.cache.job((view.namespace, name)))}
        departed = tuple(pod for pod in self.cache.departed.of(view) if pod.name.startswith(prefix))
        known = Dependencies(others)
        return Snapshot(children, pods, events=events, dependencies=known, departed=departed)

    async def read(self, need: Need, view: JobView, snapshot: Snapshot) -> tuple[JobView, Snapshot] | None:
        """The FineTuneJob and the snapshot with what a plan needs. None: the FineTuneJob is gone, or unreadable. Raises
        ApiError."""
        kind, attempt = need.kind, need.attempt
        if Read.JOB in need.reads:
            fresh = await self._job(view)
            if fresh is None:
                return None
            view = fresh
        if Read.CHILD_JOB in need.reads and attempt:
            child = await self._child_job(view, attempt)
            children = (*snapshot.child_jobs, child) if child else snapshot.child_jobs
            snapshot = replace(snapshot, child_jobs=children)
        if Read.PODS in need.reads and kind and attempt:
            snapshot = _with_pods(snapshot, kind, attempt, await self._pods(view.key, kind, attempt))
        if Read.RIVALS in need.reads:
            snapshot = replace(snapshot, rivals=self.cache.partly_scheduled())
        if Read.WORKSPACE in need.reads:
            raw = await self.cluster.get_claim(view.namespace, view.claim)
            claim = self.cache.unreadable.read(CLAIM, claim_view, raw) if raw else None
            snapshot = replace(snapshot, workspace=claim)
        if Read.GPU_MEMORY in need.reads:
            snapshot = replace(snapshot, gpu_memory_bytes=await self._gpu_memory(view, need.node_selector or {}))
        if Read.DEPENDENCIES in need.reads:
            snapshot = replace(snapshot, dependencies=await self._dependencies(view))
        if Read.SERVICES in need.reads:
            snapshot = replace(snapshot, services=await self._services(view))
        if Read.NOTIFICATION in need.reads:
            name = notification_name(view.name, view.uid, str(view.status.get("completionTime")))
            found = await self.cluster.get_child_job(view.namespace, name)
            snapshot = replace(snapshot, notified=found is not None)
        if Read.WORKLOAD in need.reads and kind and attempt:
            child = snapshot.child_job(kind, attempt.number)
            snapshot = replace(snapshot, queue=await self._queue(child) if child else None)
        if Read.PRESETS in need.reads:
            raw = await self.cluster.get_presets(view.namespace)
            snapshot = replace(snapshot, presets=presets_view(raw) if raw else None)
        if Read.ACCEPTED_TERMS in need.reads:
            snapshot = replace(snapshot, accepted_terms=await self._accepted_terms(snapshot.child_jobs))
        return view, replace(snapshot, reads=snapshot.reads | need.reads)

    async def _job(self, view: JobView) -> JobView | None:
        raw = await self.cluster.get_job(view.key)
        if raw is None or section(raw, "metadata").get("uid") != view.uid:
            self.cache.jobs.drop(view)
            return None
        fresh = self.cache.unreadable.read(KIND, job_view, raw)
        if fresh is None:
            return None
        self.cache.jobs.put(fresh)
        return None if fresh.deleting else fresh

    async def _child_job(self, view: JobView, attempt: Attempt) -> ChildJobView | None:
        """The attempt's child job. Somebody else's Job of its name is none."""
        raw = await self.cluster.get_child_job(view.namespace, attempt.job)
        child = self.cache.unreadable.read("Job", child_job_view, raw) if raw else None
        if raw is None or child is None or view.uid not in owners(raw):
            return None
        if child.watched:
            self.cache.child_jobs.confirm(child)
        return child

    async def _pods(self, key: Key, kind: Kind, attempt: Attempt) -> tuple[PodView, ...]:
        raws = await self.cluster.pods_of(key, kind, attempt.number)
        views = [self.cache.unreadable.read("Pod", pod_view, raw) for raw in raws]
        return tuple(view for view in views if view and view.name.startswith(f"{attempt.job}-"))

    async def _services(self, view: JobView) -> tuple[ServiceView, ...]:
        raws = await self.cluster.services_of(view.key)
        views = [self.cache.unreadable.read("Service", lambda raw: service_view(raw, view.uid), raw) for raw in raws]
        return tuple(service for service in views if service is not None)

    async def _queue(self, child: ChildJobView) -> QueueView:
        namespace = child.key[0]
        try:
            raws = await self.cluster.workloads_of(namespace, child.uid)
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            return QueueView(unknown="no right" if error.status == 403 else "no Kueue")
        views = [view for raw in raws if (view := self.cache.unreadable.read("Workload", workload_view, raw))]
        workload = next(iter(views), None)
        if workload is not None and workload.queue and workload.active and not workload.is_true("QuotaReserved"):
            version = str(raws[0].get("apiVersion", "")).rpartition("/")[2] or KUEUE_VERSIONS[0]
            head = await self.cluster.queue_head(namespace, workload.queue, version)
            workload = replace(workload, position=position_of(workload.name, head))
        return QueueView(workload)

    async def _gpu_memory(self, view: JobView, node_selector: Mapping[str, str]) -> int | None:
        """The least memory of a GPU among the nodes that a nodeSelector allows, by the label of NVIDIA's GPU
        feature discovery."""
        label = f"{section(view.spec, 'resources').get('gpuResource', 'nvidia.com/gpu')}.memory"
        selector = [label, *(f"{key}={value}" for key, value in node_selector.items())]
        try:
            nodes = await self.cluster.node_labels(",".join(selector))
        except ApiError as error:
            if error.status != 403:
                raise
            log.warning("Cannot read the nodes' labels. Memory estimates are not compared with them: %s", error)
            return None
        return least_gpu_memory(labels.get(label, "") for labels in nodes)

    async def _dependencies(self, view: JobView) -> Dependencies:
        """All members of a cycle are read live, too: a job that fails because of another job's old state would fail for
        good."""

        def dependencies(name: str) -> set[str]:
            other = self.cache.job((view.namespace, name))
            return other.dependencies if other and not other.deleting else set()

        jobs = {name: other for name in view.dependencies if (other := await self._dependency((view.namespace, name)))}
        seen, cycle = {view.name, *view.dependencies}, find_cycle(view.name, dependencies)
        while unseen := set(cycle) - seen:
            for name in unseen:
                await self._dependency((view.namespace, name))
            seen, cycle = seen | unseen, find_cycle(view.name, dependencies)
        raws = {name: await self.cluster.get_claim(view.namespace, name) for name in {o.claim for o in jobs.values()}}
        read = self.cache.unreadable.read
        claims = {name: claim for name, raw in raws.items() if raw and (claim := read(CLAIM, claim_view, raw))}
        return Dependencies(jobs, {name: claim for name, claim in claims.items() if not claim.deleting}, cycle)

    async def _dependency(self, key: Key) -> JobView | None:
        cached = self.cache.job(key)
        raw = await self.cluster.get_job(key)
        fresh = self.cache.unreadable.read(KIND, job_view, raw) if raw else None
        if cached is not None and (fresh is None or fresh.uid != cached.uid):
            self.cache.jobs.drop(cached)
        if fresh is not None and self.cache.jobs.put(fresh):
            # The watch event of this version changes nothing any more, so nothing else would queue that job.
            self.cache.jobs.wake(key)
        return fresh

    async def _accepted_terms(self, children: tuple[ChildJobView, ...]) -> AcceptedTerms | None:
        """From the newest child job that still exists."""
        for child in sorted(children, key=lambda child: child.created, reverse=True):
            raw = await self.cluster.get_child_job(child.key[0], child.name)
            if raw is not None and section(raw, "metadata").get("uid") == child.uid:
                return self.cache.unreadable.read("Job", accepted_terms, raw)
        return None


def _with_pods(snapshot: Snapshot, kind: Kind, attempt: Attempt, live: tuple[PodView, ...]) -> Snapshot:
    """With the attempt's pods as they are now. A pod that is gone, while the watch has not shown how it ended, departs
    as it was last seen."""
    there = {pod.uid for pod in (*live, *snapshot.departed)}
    of_attempt = [pod for pod in snapshot.pods if (pod.kind, pod.attempt) == (kind, attempt.number)]
    others = (pod for pod in snapshot.pods if (pod.kind, pod.attempt) != (kind, attempt.number))
    leaving = (pod for pod in of_attempt if pod.uid not in there)
    return replace(snapshot, pods=(*others, *live), departed=(*snapshot.departed, *leaving))
