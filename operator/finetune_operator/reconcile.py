"""snapshot -> plan -> act, for one FineTuneJob at a time.

Each reconcile takes at most one step of the plan, and comes again at once after a write: the next one plans from what
the write returned, exactly as it would after a crash.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from finetune_api.job import KIND
from finetune_api.status import FineTuneJobStatus, Reason

from finetune_operator import events
from finetune_operator.access import Access
from finetune_operator.cache import Cache
from finetune_operator.cluster import ApiError, Cluster, NamespaceTerminatingError
from finetune_operator.event_reader import EventReader
from finetune_operator.health import WatchLag
from finetune_operator.metrics import Metrics
from finetune_operator.observer import Observer
from finetune_operator.plan import Create, Delete, DeleteService, Need, Notify, Plan, SetProgress, plan
from finetune_operator.plan.failures import tell
from finetune_operator.recorder import Recorder
from finetune_operator.settings import Settings
from finetune_operator.views.child_job import ChildJobView, child_job_view
from finetune_operator.views.job import JobView, job_view, operator_part
from finetune_operator.views.metadata import Key, Raw, Unreadable, section
from finetune_operator.views.snapshot import Read, Snapshot
from finetune_operator.views.status import merge_unknown, parse_status

log = logging.getLogger(__name__)

AT_ONCE = 0.0
LIVE_SECONDS = 1.0
"""For so long what a write returned is as good as a live read."""
TELL_SECONDS = 5.0
"""A failure that lasts longer is reported in the status. A restart of the API server is not worth a write."""
NOTHING_WRITTEN = (
    "The API server accepts the status that the operator writes, but keeps the status as it was. The installed CRD may"
    " be older than this operator. Install the CRD of the operator's chart."
)
FROM_SPEC = ("Job", "Service", "PersistentVolumeClaim")
"""Kinds that are made from the job's spec: if the API server finds one invalid, so is the spec."""


@dataclass(frozen=True)
class Decision:
    """A plan, and the facts that it was made from."""

    view: JobView
    snapshot: Snapshot
    plan: Plan


async def decide(
    observer: Observer, key: Key, now: datetime, settings: Settings, live: int | None = None
) -> Decision | None:
    """Plan from the cache, and again after each need for live reads. None: there is no FineTuneJob to plan for. `live`
    is the version of the FineTuneJob that the API server has just returned. Raises ApiError."""
    view = observer.cache.job(key)
    if view is None or view.deleting:
        return None
    snapshot = observer.snapshot(view)
    if view.resource_version == live:
        snapshot = replace(snapshot, reads=frozenset({Read.JOB}))
    for _ in range(len(Read) + 1):
        planned = plan(view, snapshot, now, settings)
        if not isinstance(planned, Need):
            return Decision(view, snapshot, planned)
        fresh = await observer.read(planned, view, snapshot)
        if fresh is None:
            return None
        view, snapshot = fresh
    raise AssertionError("every need names a read that is not done yet")


UNSERVED_SECONDS = 30.0
"""How long a new job waits in a namespace of another installation, which may have gone, until this operator asks again
whose it is. Jobs with a status wait for the next look at everything."""


@dataclass(frozen=True)
class Refusal:
    """Why the API server refuses an object of an attempt."""

    words: str
    final: bool
    """Whether no other try can succeed."""


@dataclass(frozen=True)
class Reconciler:
    """What the workers of the queue run."""

    cache: Cache
    cluster: Cluster
    event_reader: EventReader
    settings: Settings
    lag: WatchLag
    clock: Callable[[], datetime]
    serves: Callable[[str], Awaitable[bool]]
    """Whether a namespace is this operator's."""
    access: Access
    recorder: Recorder
    metrics: Metrics = field(default_factory=Metrics)
    written: dict[Key, tuple[int, float]] = field(default_factory=dict)
    """The version that the last write of a job returned, and when, until the job is planned again."""
    failing: dict[Key, datetime] = field(default_factory=dict)
    """Since when the reconciles of a job fail."""
    given_up: dict[Key, str] = field(default_factory=dict)
    """The uids of jobs whose namespace is being deleted."""

    async def reconcile(self, key: Key) -> float | None:
        """Seconds until the key is due again, or None. Raises ApiError; the queue then backs off. A job whose status
        cannot be read waits for its next version."""
        view = self.cache.job(key)
        if view is not None and self.given_up.get(key) == view.uid:
            return None
        self.given_up.pop(key, None)
        if not await self.serves(key[0]):
            self.event_reader.want(key, frozenset())
            self.failing.pop(key, None)
            return UNSERVED_SECONDS if view is not None and view.is_new else None
        try:
            due = await self._take_step(key)
        except NamespaceTerminatingError as error:
            self.give_up(key[0], error)
            due = None
        self.failing.pop(key, None)
        return due

    async def report_failure(self, key: Key, error: Exception, began: datetime) -> None:
        """Count and log why a reconcile, which began then, has failed; and write it into the status once the failures
        last. The write may fail too, and then the next failure writes. Raises nothing."""
        known = isinstance(error, ApiError | TimeoutError)
        reason = Reason.API_SERVER_ERROR if known else Reason.OPERATOR_ERROR
        self.metrics.failures[reason] += 1
        words = str(error) if isinstance(error, ApiError) else f"{type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, TimeoutError):
            words = "The API server answers so slowly that the operator gave up after several calls."
        log.warning("%s/%s: %s. Trying again.", *key, words, exc_info=None if known else error)
        since, now = self.failing.setdefault(key, began), self.clock()
        view = self.cache.job(key)
        if view is None or view.deleting or (now - since).total_seconds() < TELL_SECONDS:
            return
        try:
            written = operator_part(view.status)
            reported = tell(written, reason, words, view.generation, now)
            if reported != written and await self.serves(key[0]):
                await self._replace(view, self.cluster.apply_status(view, reported))
        except Exception as unwritten:
            log.warning("%s/%s: the failure is not in the status yet: %s", *key, unwritten)

    def give_up(self, namespace: str, error: ApiError) -> None:
        """Do nothing more for the jobs of a namespace that is being deleted. Each of them would be refused, too."""
        log.info("Namespace %s is being deleted. Nothing more is done for its jobs: %s", namespace, error)
        self.access.forget(namespace)
        for key in self.cache.job_keys():
            if key[0] == namespace and (view := self.cache.job(key)):
                self.given_up[key] = view.uid
                self.event_reader.want(key, frozenset())

    async def _decide(self, key: Key, now: datetime) -> Decision | None:
        """What to do about the job. None also for a job whose status cannot be read."""
        version, since = self.written.pop(key, (None, 0.0))
        live = version if asyncio.get_running_loop().time() - since < LIVE_SECONDS else None
        try:
            return await decide(Observer(self.cache, self.cluster, self.event_reader), key, now, self.settings, live)
        except Unreadable as error:
            if view := self.cache.job(key):
                name = f"{view.namespace}/{view.name}"
                self.cache.unreadable.report(KIND, name, view.uid, str(view.resource_version), error)
            return None

    async def _take_step(self, key: Key) -> float | None:
        now = self.clock()
        decision = await self._decide(key, now)
        if decision is None:
            self.event_reader.want(key, frozenset())
            return None
        view, snapshot, planned = decision.view, decision.snapshot, decision.plan
        if await self._write_status(view, planned.status, now):
            return AT_ONCE
        if isinstance(planned.step, Create):
            refusal = await self._create(planned.step)
            if refusal is None:
                return AT_ONCE
            refused = plan(view, replace(snapshot, refusal=refusal.words, invalid=refusal.final), now, self.settings)
            assert isinstance(refused, Plan), "a refusal needs no further read"
            planned = refused
            if await self._write_status(view, planned.status, now):
                return AT_ONCE
        if isinstance(planned.step, Delete):
            await self._delete(planned.step.child_job)
            return AT_ONCE
        if isinstance(planned.step, DeleteService):
            log.info("%s/%s: deleting Service %s", *key, planned.step.service.name)
            await self.cluster.delete_service(planned.step.service)
            return AT_ONCE
        if isinstance(planned.step, Notify):
            return AT_ONCE if await self._notify(key, planned.step) else planned.look_again(now)
        if isinstance(planned.step, SetProgress):
            await self._replace(view, self.cluster.set_progress(view, planned.step.progress))
            return AT_ONCE
        self.event_reader.want(key, planned.events_about)
        return planned.look_again(now)

    async def _write_status(self, view: JobView, status: FineTuneJobStatus, now: datetime) -> bool:
        """Write the operator's part of the status if it changes. False: it does not change. Otherwise the caller plans
        again."""
        before = parse_status(view.status)
        if status == before:
            return False
        desired = merge_unknown(view.status, status)
        if desired == merge_unknown(view.status, before):
            return False
        if not await self._replace(view, self.cluster.apply_status(view, desired)):
            return True
        log.info("%s/%s: %s %s: %s", view.namespace, view.name, status.phase, status.reason, status.message)
        self._count_restarts(before, status)
        self.recorder.add(events.event(view, before, status, now))
        return True

    def _count_restarts(self, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
        """Count what the trainers have restarted since the last write. Only the newest of them has a reason."""
        known = {entry.number: entry.restarts.number for entry in before.attempts or [] if entry.restarts}
        for entry in after.attempts or []:
            if entry.restarts:
                self.metrics.restarts[entry.restarts.reason] += entry.restarts.number - known.get(entry.number, 0)

    async def _replace(self, view: JobView, write: Awaitable[Raw]) -> bool:
        """Do a write that is made from a view, and cache what it returns. False: the job has changed since (by its
        user, its trainer or another operator), and the cache has its newer version. Raises ApiError also if the write
        has changed nothing: the same plan would make it again and again."""
        try:
            written = job_view(await write)
        except ApiError as error:
            if error.status != 409 or not await self._is_outdated(view):
                raise
            return False
        if written == view:
            raise ApiError(0, NOTHING_WRITTEN)
        self.written[view.key] = written.resource_version, asyncio.get_running_loop().time()
        if self.cache.jobs.put(written):
            # The watch must show it, too.
            self.lag.expect(written.uid, written.resource_version)
        return True

    async def _is_outdated(self, view: JobView) -> bool:
        """Read the job live into the cache. Whether that is news."""
        raw = await self.cluster.get_job(view.key)
        if raw is None or section(raw, "metadata").get("uid") != view.uid:
            self.cache.jobs.drop(view)
            return True
        fresh = self.cache.unreadable.read(KIND, job_view, raw)
        if fresh is None:
            return False
        self.cache.jobs.put(fresh)
        return fresh.resource_version > view.resource_version

    async def _create(self, step: Create) -> Refusal | None:
        """Create the attempt's objects. Returns the refusal if the API server refuses one of them."""
        *prerequisites, manifest = step.manifests
        if step.note:
            log.warning("%s: %s", manifest["metadata"]["name"], step.note)
        current = manifest
        try:
            for prerequisite in prerequisites:
                current = prerequisite
                # A claim is never changed: its size and class are between its user and the storage.
                if prerequisite["kind"] == "PersistentVolumeClaim":
                    await self.cluster.create_if_absent(prerequisite)
                elif prerequisite["kind"] == "Service":
                    await self.cluster.create(prerequisite)
                else:
                    await self.access.ensure(prerequisite)
            current = manifest
            child = self.cache.unreadable.read("Job", child_job_view, await self.cluster.create(manifest))
        except NamespaceTerminatingError:
            raise
        except ApiError as error:
            if not error.refused:
                raise
            log.warning("%s: the API server refuses an object of the attempt: %s", manifest["metadata"]["name"], error)
            final = error.invalid and current["kind"] in FROM_SPEC
            return Refusal(f"The cluster refuses an object of the attempt: {error}", final)
        if child is None or not child.watched:
            name = manifest["metadata"]["name"]
            return Refusal(f"Job {name} exists, but somebody changed its labels. Delete it, or set them again.", False)
        if self.cache.child_jobs.confirm(child):
            self.lag.expect(child.uid, child.resource_version)
        log.info("%s/%s: created child job %s", *child.key, child.name)
        return None

    async def _notify(self, key: Key, step: Notify) -> bool:
        """Create the Job that tells the end. False: the API server refuses it, which changes nothing."""
        try:
            await self.cluster.create(step.manifest)
        except NamespaceTerminatingError:
            raise
        except ApiError as error:
            if not error.refused:
                raise
            log.warning("%s/%s: the Job that tells the end of the job is refused. Trying again: %s", *key, error)
            return False
        log.info("%s/%s: created Job %s, which tells the end of the job", *key, step.manifest["metadata"]["name"])
        return True

    async def _delete(self, child: ChildJobView) -> None:
        """Delete a child job, or learn that it has changed. The caller plans again in either case: what is cached here
        is no news when the watch shows it."""
        log.info("%s/%s: deleting child job %s", *child.key, child.name)
        conflict = None
        try:
            await self.cluster.delete_child_job(child)
        except ApiError as error:
            if error.status != 409:
                raise
            conflict = error
        raw = await self.cluster.get_child_job(child.key[0], child.name)
        fresh = child_job_view(raw) if raw else None
        if fresh is None or fresh.uid != child.uid:
            self.cache.child_jobs.drop(child)
        else:
            self.cache.child_jobs.put(fresh)
            if conflict and fresh.resource_version == child.resource_version:
                raise conflict
