"""The operator's life: list everything, then watch, work and list anew from time to time, until told to stop.

If any part of it dies, all of it does, and the kubelet starts it again: a half-dead operator is worse than none.
"""

import asyncio
import logging
from datetime import UTC, datetime

import kopf

from finetune_operator.cache import Cache, Jobs, Parse, Shelf, V
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.handlers import kopf_settings, registry
from finetune_operator.health import WatchLag, serve
from finetune_operator.observed import Key, Raw, batch_view, job_view, pod_view
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

RECONCILE_SECONDS = 120
"""No reconcile takes that long: each makes a handful of calls with a time-out of their own."""
FIRST_RETRY_SECONDS = 5


class Operator:
    """One process, one queue, one cache."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        self.settings = settings
        self.cluster = cluster
        self.lag = WatchLag()
        self.listed = False
        self.queue: WorkQueue[Key] = WorkQueue()
        self.cache = Cache(Jobs(wake=self.queue.add))
        self.background: list[asyncio.Task[None]] = []
        self.reconciler = Reconciler(self.cache, cluster, settings, self.lag, lambda: datetime.now(UTC))

    async def run(self) -> None:
        """Until SIGTERM or SIGINT (kopf takes them)."""
        health = await serve(self.settings.health_port, self.complaints, lambda: self.listed)
        try:
            await self._first_listing()
            self.listed = True
            self.background = [asyncio.create_task(self._resync_for_ever())]
            self.background += [asyncio.create_task(self._work_for_ever()) for _ in range(self.settings.workers)]
            watching = asyncio.create_task(self._watch())
            done, _ = await asyncio.wait([watching, *self.background], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
            await watching
        finally:
            await self._stop_working()
            await health.cleanup()
            await self.cluster.close()

    def complaints(self) -> list[str]:
        """What /healthz has to say; nothing when all is well."""
        limit = self.settings.health_stuck_seconds
        out = []
        if self.lag.oldest() > limit:
            out.append(f"a watch is stuck: a change has not come by it for {self.lag.oldest():.0f} s")
        if self.queue.oldest_wait() > max(limit, RECONCILE_SECONDS + limit):
            out.append(f"the queue is stuck: a job has waited {self.queue.oldest_wait():.0f} s")
        return out

    async def _stop_working(self, **_: object) -> None:
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)

    async def _watch(self) -> None:
        watching = kopf.OperatorSettings()
        kopf_settings(watching)
        handlers = registry(self.cache, self.lag, self.queue.add)
        # kopf takes SIGTERM, and then waits 5 s for every task that it doesn't know: ours have to end first.
        kopf.on.cleanup(registry=handlers)(self._stop_working)
        await kopf.operator(
            registry=handlers,
            settings=watching,
            clusterwide=True,
            standalone=True,
        )

    async def _first_listing(self) -> None:
        """Workers start only with a full cache: 'the Job is missing' must never mean 'not listed yet'."""
        while True:
            try:
                await self.resync()
                return
            except ApiError as error:
                log.warning("cannot list what is there, trying again: %s", error)
                await asyncio.sleep(FIRST_RETRY_SECONDS)

    async def _resync_for_ever(self) -> None:
        """Every resync_seconds; earlier when a watch seems to lag, since what it owes may be no more."""
        clock = asyncio.get_running_loop().time
        patience = self.settings.health_stuck_seconds / 2
        due = clock() + self.settings.resync_seconds
        while True:
            await asyncio.sleep(min(self.settings.resync_seconds, patience))
            if clock() < due and self.lag.oldest() <= patience:
                continue
            try:
                await self.resync()
            except ApiError as error:
                log.warning("resync put off: %s", error)
            due = clock() + self.settings.resync_seconds

    async def resync(self) -> None:
        """List every kind anew, drop what is no more, and queue everything: what repairs a lost watch event."""
        # Children first: a FineTuneJob in the cache then always has the children it had when it was listed.
        self._take_listing(self.cache.pods, await self.cluster.list_pods(), pod_view)
        self._take_listing(self.cache.batches, await self.cluster.list_batches(), batch_view)
        self._take_listing(self.cache.jobs, await self.cluster.list_jobs(), job_view)
        for key in self.cache.known():
            self.queue.add(key)

    def _take_listing(self, shelf: Shelf[V], listing: tuple[list[Raw], int], parse: Parse[V]) -> None:
        raws, at = listing
        views = [view for raw in raws if (view := parse(raw)) is not None]
        before = {view.uid for siblings in shelf.views.values() for view in siblings.values()}
        shelf.replace(views, at)
        for view in views:
            if view.uid not in shelf.deleted:
                self.lag.expect(view.uid, view.resource_version)
        for uid in before - {view.uid for view in views}:
            if uid in shelf.deleted:
                self.lag.gone(uid)

    async def _work_for_ever(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                look_again = await asyncio.wait_for(self.reconciler.reconcile(key), RECONCILE_SECONDS)
            except (ApiError, TimeoutError) as error:
                log.warning("%s/%s: %s; trying again", *key, error)
                self.queue.done(key, failed=True)
            except Exception:
                log.exception("%s/%s: an error of the operator's own; trying again", *key)
                self.queue.done(key, failed=True)
            else:
                self.queue.done(key)
                if look_again is not None:
                    self.queue.add_after(key, look_again)
