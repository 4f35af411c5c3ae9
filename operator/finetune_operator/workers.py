"""What only the leader does: reconcile jobs, read and post Events, look after the access of attempts."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from finetune_operator.access import restore_access
from finetune_operator.cluster import Cluster
from finetune_operator.event_reader import EventReader
from finetune_operator.gate import NotLeading
from finetune_operator.logs import current_job
from finetune_operator.reconcile import AT_ONCE, Reconciler
from finetune_operator.settings import Settings
from finetune_operator.views.metadata import Key
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

RECONCILE_SECONDS = 120
"""No turn takes so long: each makes a few calls, and each call has its own timeout."""
STEPS = 3
"""Reconciles in a turn, at most. A new job gets its status and its child job in one turn: between the two it does not
wait behind all other jobs."""


@dataclass
class Workers:
    """They plan every job again that is in the cache, with its children: the leader before may have ended between two
    writes."""

    queue: WorkQueue[Key]
    reconciler: Reconciler
    event_reader: EventReader
    cluster: Cluster
    settings: Settings
    at_work: bool = False

    async def run(self) -> None:
        """Until they are cancelled. Raises what ends one of them."""
        self.queue.clear()
        self.reconciler.failing.clear()
        self.queue_all()
        self.at_work = True
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.settings.workers):
                    group.create_task(self._work_forever())
                group.create_task(self.event_reader.run())
                group.create_task(self.reconciler.recorder.run())
                group.create_task(self.reconciler.access.run())
                group.create_task(self.restore_access())
        finally:
            self.at_work = False

    def queue_all(self) -> None:
        """Every job, those that no operator has seen yet first."""
        cache = self.reconciler.cache
        for key in cache.job_keys():
            job = cache.job(key)
            self.queue.add(key, routine=job is not None and not job.is_new)

    async def restore_access(self) -> None:
        """See `access.restore_access`."""
        with contextlib.suppress(NotLeading):
            await restore_access(self.reconciler.cache, self.cluster, self.settings, self.reconciler.serves)

    async def _work_forever(self) -> None:
        while True:
            key, began = await self.queue.get(), self.reconciler.clock()
            failed, look_again = False, None
            current_job.set(key)
            started = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(RECONCILE_SECONDS):
                    for _ in range(STEPS):
                        look_again = await self.reconciler.reconcile(key)
                        if look_again != AT_ONCE:
                            break
            except NotLeading as error:
                failed = True
                log.info("%s/%s: nothing was written: %s", *key, error)
            except Exception as error:
                failed = True
                await self.reconciler.report_failure(key, error, began)
            finally:
                self.reconciler.metrics.reconcile.observe(asyncio.get_running_loop().time() - started)
                # A worker that is cancelled gives its key back, too.
                self.queue.done(key, failed=failed)
            if look_again is not None:
                self.queue.add_after(key, look_again)
