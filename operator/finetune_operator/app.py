"""The operator's process: list everything, then watch, work and list again from time to time, until it is stopped.

If any part fails, the process ends and the kubelet restarts it: an operator of which only a part works is worse.
"""

import asyncio
import contextlib
import logging
from datetime import UTC, datetime

import kopf

from finetune_operator.access import Access
from finetune_operator.cache import Cache, JobStore
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.event_reader import EventReader
from finetune_operator.exposition import Samples
from finetune_operator.gpu_seconds import GpuSeconds
from finetune_operator.handlers import kopf_settings, registry
from finetune_operator.health import WatchLag, serve
from finetune_operator.job_metrics import job_samples
from finetune_operator.leadership import Elector
from finetune_operator.listing import Listing
from finetune_operator.metrics import Metrics
from finetune_operator.milestones import record
from finetune_operator.reconcile import Reconciler
from finetune_operator.recorder import Recorder
from finetune_operator.refusals import KOPF_LOGGER, WatchRefusals
from finetune_operator.settings import Settings
from finetune_operator.territory import Territory
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Key
from finetune_operator.workers import RECONCILE_SECONDS, Workers
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 5
HEAD_START_SECONDS = 2.0
LAST_EVENTS_SECONDS = 1.0
"""How long an operator that ends still posts the Events about what it has done."""
CALM_SECONDS = 10
"""The operator is ready if the API server has answered well for so long."""


class Operator:
    """One process, one queue, one cache."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        self.settings = settings
        self.cluster = cluster
        self.lag = WatchLag()
        self.listed = False
        self.unlisted = ""
        """Why the last look at everything failed; empty if it did not."""
        self.queue: WorkQueue[Key] = WorkQueue()
        self.gpu_seconds = GpuSeconds(lambda: datetime.now(UTC))
        self.cache = Cache(JobStore(wake=self.queue.add, changed=self._changed))
        self.background: list[asyncio.Task[None]] = []
        self.elector: Elector | None = None
        self.territory = Territory(cluster, settings)
        # kopf logs every try of a watch. In a namespace that does not exist, that would never end.
        self.refusals = WatchRefusals(self.territory.is_closed, quiet=bool(settings.watch_namespaces))
        self.listing = Listing(self.cache, cluster, self.lag, self.territory)
        self.unserved: list[str] = []
        """Why the operator cannot serve what it was installed for, at the last look at everything."""
        self.event_reader = EventReader(cluster, self.cache.unreadable, self.queue.add)
        self.metrics = Metrics(
            unreadable=self.cache.unreadable.counts,
            leading=lambda: self.workers.at_work,
            orphans=lambda: len(self.cache.orphans()),
            calls=cluster.calls,
            depth=self.queue.depth,
            lag=self.lag.oldest,
            gpu_seconds=self.gpu_seconds.samples,
            jobs=self._job_samples,
        )
        self.reconciler = Reconciler(
            self.cache,
            cluster,
            self.event_reader,
            settings,
            self.lag,
            lambda: datetime.now(UTC),
            self.territory.serves,
            Access(cluster, self.cache),
            Recorder(cluster, self._give_up),
            self.metrics,
        )
        self.workers = Workers(self.queue, self.reconciler, self.event_reader, cluster, settings)

    def _changed(self, before: JobView | None, after: JobView | None) -> None:
        self.gpu_seconds.changed(before, after)
        if self.workers.at_work and before is not None and after is not None and before.uid == after.uid:
            record(self.metrics, before, after)

    def _job_samples(self) -> dict[str, Samples]:
        jobs = [job for key in self.cache.job_keys() if (job := self.cache.job(key)) is not None]
        return job_samples(jobs, datetime.now(UTC), self.settings.metrics_per_job)

    async def run(self, elector: Elector) -> None:
        """Runs until SIGTERM or SIGINT, which kopf handles. All operators list and watch; the leader works."""
        self.elector = elector
        health = await serve(self.settings.health_port, self.problems, self.obstacles, self.metrics)
        try:
            new = await self.listing.look_for_new()
            if not new:
                # An operator that cannot list everything does not take the Lease from one that can, without need.
                await self._first_listing()
            self.background = [asyncio.create_task(elector.run(self.workers.run))]
            looked = asyncio.create_task(elector.looked.wait())
            await asyncio.wait([looked, *self.background], return_when=asyncio.FIRST_COMPLETED)
            await self._serve_new_jobs()
            if new:
                await self._first_listing()
                await self._serve_new_jobs()
            self.background.append(asyncio.create_task(self._resync_forever()))
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

    def problems(self) -> list[str]:
        """What /healthz reports, and a restart fixes; empty if the operator works."""
        limit = self.settings.health_stuck_seconds
        out = []
        # A watch owes nothing to an operator whose API server has trouble to answer at all.
        silent = min(self.lag.oldest(), self.cluster.calm_seconds())
        if self.listed and silent > limit:
            out.append(f"a watch is stuck: it has not shown a change for {silent:.0f} s")
        if self.workers.at_work and self.queue.standstill() > RECONCILE_SECONDS + limit:
            out.append(f"the queue is stuck: no worker has made progress for {self.queue.standstill():.0f} s")
        return out

    def obstacles(self) -> list[str]:
        """What /readyz reports beside: the operator works, but cannot serve."""
        out = list(self.unserved) if self.listed else ["The first listing is not complete."]
        if self.unlisted:
            out.append(f"Cannot list the objects: {self.unlisted}")
        out += self.refusals.lasting()
        if self.cluster.calm_seconds() < CALM_SECONDS:
            out.append("The API server is overloaded or does not answer.")
        if self.elector is not None and self.elector.obstacle:
            out.append(self.elector.obstacle)
        return out

    def _give_up(self, namespace: str, error: ApiError) -> None:
        self.reconciler.give_up(namespace, error)

    async def _stop_working(self, **_: object) -> None:
        if self.workers.at_work:
            await self.reconciler.recorder.posted(LAST_EVENTS_SECONDS)
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)

    async def _watch(self) -> None:
        settings = kopf.OperatorSettings()
        namespaces = self.settings.watch_namespaces
        kopf_settings(settings, namespaces)
        logging.getLogger(KOPF_LOGGER).addFilter(self.refusals)
        handlers = registry(self.cache, self.lag, self.queue.add)
        # On SIGTERM kopf waits 5 s for every task that it does not know, so ours have to end first.
        kopf.on.cleanup(registry=handlers)(self._stop_working)
        await kopf.operator(
            registry=handlers,
            settings=settings,
            clusterwide=not namespaces,
            namespaces=namespaces,
            standalone=True,
        )

    async def _first_listing(self) -> None:
        while True:
            try:
                await self.resync()
                self.lag.begin()
                self.listed = True
                return
            except ApiError as error:
                self.unlisted = str(error)
                log.warning("Cannot list the objects. Trying again: %s", error)
                await asyncio.sleep(FIRST_RETRY_SECONDS)

    async def _serve_new_jobs(self) -> None:
        """Give new jobs a head start on the listing, and on kopf, which lists every object once more when it starts to
        watch: with thousands of objects, both are seconds of CPU. They show what happens meanwhile."""
        if self.elector is None or not self.elector.leading:
            return
        new = {key for key in self.cache.job_keys() if (job := self.cache.job(key)) is not None and job.is_new}
        for key in new:
            self.queue.add(key)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEAD_START_SECONDS):
                await self.queue.until_done(new)

    async def _resync_forever(self) -> None:
        """Every resync_seconds. Earlier while a namespace cannot be listed, and if a watch seems to lag: the object
        that it owes may be deleted."""
        clock = asyncio.get_running_loop().time
        patience = self.settings.health_stuck_seconds / 2
        due = clock() + self.settings.resync_seconds
        while True:
            await asyncio.sleep(min(self.settings.resync_seconds, patience))
            if clock() < due and self.lag.oldest() <= patience and not self.territory.closed:
                continue
            try:
                await self.resync()
            except ApiError as error:
                # An API server that does not answer is no obstacle of this operator.
                self.unlisted = str(error) if error.refused else ""
                log.warning("Resync failed. Trying again later: %s", error)
            due = clock() + self.settings.resync_seconds

    async def resync(self) -> None:
        """Look at everything, and queue every job, those that no operator has seen yet first."""
        await self.listing.look()
        self.unserved = await self.territory.obstacles()
        self.unlisted = ""
        self.workers.queue_all()
        if self.workers.at_work:
            await self.workers.restore_access()
