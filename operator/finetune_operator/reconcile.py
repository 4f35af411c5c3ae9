"""observe -> plan -> act, for one FineTuneJob at a time.

Each call makes at most one step of the plan, and comes again at once after a write: the next call plans from what the
write returned, exactly as it would after a crash.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from finetune_api.status import FineTuneJobStatus

from finetune_operator import events
from finetune_operator.cache import Cache
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.health import WatchLag
from finetune_operator.observe import Observer
from finetune_operator.observed import BatchView, JobView, Key, batch_view, job_view, operator_part
from finetune_operator.plan import Create, Delete, plan
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)

AT_ONCE = 0.0
REFUSALS = (400, 403, 404, 409, 422)
"""What trying again at once can't cure: quota counts, admission, a namespace that is going, a name that is taken."""


@dataclass(frozen=True)
class Reconciler:
    """What the workers of the queue run."""

    cache: Cache
    cluster: Cluster
    settings: Settings
    lag: WatchLag
    clock: Callable[[], datetime]

    async def reconcile(self, key: Key) -> float | None:
        """Seconds until the key wants to be looked at again, or None. Raises ApiError; the queue then backs off."""
        now = self.clock()
        seen = await Observer(self.cache, self.cluster, self.settings.read_node_labels).observe(key, now)
        if seen is None:
            return None
        view, observed = seen
        planned = plan(view, observed, now, self.settings)
        if await self._write_status(view, planned.status, now):
            return AT_ONCE
        if isinstance(planned.step, Create):
            refused = await self._create(planned.step)
            if not refused:
                return AT_ONCE
            planned = plan(view, replace(observed, refused=refused), now, self.settings)
            if await self._write_status(view, planned.status, now):
                return AT_ONCE
        if isinstance(planned.step, Delete):
            await self._delete(planned.step.batch)
        return planned.look_again

    async def _write_status(self, view: JobView, status: FineTuneJobStatus, now: datetime) -> bool:
        """Write our part of the status if it changes; True if it did."""
        before = FineTuneJobStatus.model_validate(view.status)
        wanted = operator_part(status.to_dict())
        if wanted == operator_part(before.to_dict()):
            return False
        written = job_view(await self.cluster.apply_status(view, wanted))
        if self.cache.jobs.put(written):
            self.lag.expect(written.uid, written.resource_version)
        log.info("%s/%s: %s %s: %s", view.namespace, view.name, status.phase, status.reason, status.message)
        await events.post(self.cluster, events.event(view, before, status, now))
        return True

    async def _create(self, step: Create) -> str:
        """Make the attempt's objects. What the API server says if it refuses one for good, else nothing."""
        *prerequisites, job = step.children
        try:
            for manifest in prerequisites:
                # A claim is made once: what its size or class became is between its user and the storage.
                once = manifest["kind"] == "PersistentVolumeClaim"
                await (self.cluster.make_once(manifest) if once else self.cluster.ensure(manifest))
            made = batch_view(await self.cluster.create(job))
        except ApiError as error:
            if error.status not in REFUSALS:
                raise
            log.warning("%s: refused: %s", job["metadata"]["name"], error)
            return f"The cluster refuses what the attempt needs: {error}."
        assert made is not None, "our own labels"
        if self.cache.batches.put(made):
            self.lag.expect(made.uid, made.resource_version)
        log.info("%s/%s: created Job %s", *made.key, made.name)
        return ""

    async def _delete(self, batch: BatchView) -> None:
        log.info("%s/%s: deleting Job %s", *batch.key, batch.name)
        try:
            await self.cluster.delete_batch(batch)
        except ApiError as error:
            if error.status != 409:
                raise
        raw = await self.cluster.get_batch(batch.key[0], batch.name)
        fresh = batch_view(raw) if raw else None
        if fresh is None or fresh.uid != batch.uid:
            self.cache.batches.drop(batch)
        else:
            self.cache.batches.put(fresh)
