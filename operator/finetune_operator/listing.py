"""A look at everything: list every kind into the cache, and drop from it what no longer exists.

This comes before all other work, and repairs lost watch events. Only new jobs do not wait for it: an operator that
starts beside thousands of jobs lists those first that no operator has seen yet. An operator of some namespaces lists
each of them. A namespace that it may not list stops no other: nothing of it stays in the cache.

A FineTuneJob enters the cache after its children: "the child job is missing" never means "it is not listed yet".
"""

import logging
from collections import defaultdict
from dataclasses import dataclass

from finetune_api.job import KIND

from finetune_operator.cache import Cache, Parse, Store, V
from finetune_operator.cluster import EVERYWHERE, ApiError, Cluster, Pages
from finetune_operator.health import WatchLag
from finetune_operator.territory import Territory
from finetune_operator.views.child_job import child_job_view
from finetune_operator.views.job import job_view
from finetune_operator.views.metadata import Key, Raw, section
from finetune_operator.views.pod import pod_view
from finetune_operator.views.presets import presets_view

log = logging.getLogger(__name__)

FORBIDDEN = 403
NEW_AT_ONCE = 50
"""New jobs that do not wait until everything is listed. With more of them, a second or two do not matter."""


@dataclass(frozen=True)
class Listing:
    """See the module's docstring."""

    cache: Cache
    cluster: Cluster
    lag: WatchLag
    territory: Territory

    async def look(self) -> None:
        """Raises ApiError."""
        for scope in self.territory.scopes:
            try:
                await self._look_at(scope)
            except ApiError as error:
                if scope == EVERYWHERE or error.status != FORBIDDEN:
                    raise
                self.territory.close(scope, error)
                self._forget(scope)
            else:
                self.territory.open(scope)

    async def look_for_new(self) -> set[Key]:
        """The new jobs, with all that is known of them. Jobs that depend on others are none of them: what those are
        must be listed first. A look that fails finds nothing, and the look at everything says why."""
        found: set[Key] = set()
        for scope in self.territory.scopes:
            try:
                found |= await self._new_jobs(await self.cluster.new_jobs(scope, NEW_AT_ONCE))
            except ApiError as error:
                log.debug("New jobs are found when everything is listed: %s", error)
        return found

    async def _new_jobs(self, raws: list[Raw]) -> set[Key]:
        read = self.cache.unreadable.read
        jobs = [job for raw in raws if (job := read(KIND, job_view, raw)) and not job.dependencies]
        names: dict[str, list[str]] = defaultdict(list)
        for job in jobs:
            names[job.namespace].append(job.name)
        for namespace in names:
            # A job has children although its status is empty if somebody wiped it.
            child_jobs, pods = await self.cluster.children_of(namespace, names[namespace])
            for raw in child_jobs:
                if child := read("Job", child_job_view, raw):
                    self.cache.child_jobs.put(child)
            for raw in pods:
                if pod := read("Pod", pod_view, raw):
                    self.cache.pods.put(pod)
        for job in jobs:
            self.cache.jobs.put(job)
        return {job.key for job in jobs}

    async def _look_at(self, scope: str) -> None:
        await self._ingest("ConfigMap", scope, self.cache.presets, self.cluster.list_presets(scope), presets_view)
        # Children first: a FineTuneJob in the cache then has all children that existed when it was listed.
        await self._ingest("Pod", scope, self.cache.pods, self.cluster.list_pods(scope), pod_view)
        await self._ingest("Job", scope, self.cache.child_jobs, self.cluster.list_child_jobs(scope), child_job_view)
        await self._ingest(KIND, scope, self.cache.jobs, self.cluster.list_jobs(scope), job_view)

    async def _ingest(self, kind: str, scope: str, store: Store[V], pages: Pages, parse: Parse[V]) -> None:
        """Parse each page before the next is read: raw objects are ten times as large as their views."""
        views: list[V] = []
        listed: set[str] = set()
        listed_at = 0
        async for raws, listed_at in pages:  # noqa: B007
            views += [view for raw in raws if (view := self.cache.unreadable.read(kind, parse, raw)) is not None]
            listed |= {str(section(raw, "metadata").get("uid")) for raw in raws}
            del raws
        before = store.uids()
        store.replace(views, listed_at, listed - {view.uid for view in views}, scope)
        for view in views:
            if view.uid not in store.deleted:
                self.lag.expect(view.uid, view.resource_version)
        for uid in before - store.uids():
            self.lag.gone(uid)

    def _forget(self, namespace: str) -> None:
        for store in (self.cache.jobs, self.cache.child_jobs, self.cache.pods, self.cache.presets):
            before = store.uids()
            store.forget_namespace(namespace)
            for uid in before - store.uids():
                self.lag.gone(uid)
