"""What the watches have shown, as views, by the FineTuneJob that they belong to.

The cache never goes back in time: an object replaces a cached object only with a higher resourceVersion (comparable
within a kind since Kubernetes stores them in etcd). So the operator's own writes enter at once, and an older watch
event changes nothing. That keeps plans from acting on stale views; no waiting is needed.

The answer to a call also replaces what a watch showed of the same version. A watch that was opened before the CRD was
upgraded shows each version without the fields that are new.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from finetune_api.status import Reason

from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Key, Raw, entries, section
from finetune_operator.views.pod import PodView
from finetune_operator.views.presets import PresetsView
from finetune_operator.views.unreadable import UnreadableObjects


class View(Protocol):
    """What a store can hold."""

    @property
    def key(self) -> Key: ...
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def resource_version(self) -> int: ...


V = TypeVar("V", bound=View)
V_co = TypeVar("V_co", bound=View, covariant=True)


class Parse(Protocol[V_co]):
    """Makes a view of an object; None if the object is not the operator's."""

    def __call__(self, raw: Raw, /) -> V_co | None: ...


TOMBSTONES = 10_000
"""Uids of deleted objects that are remembered, so that a late event does not bring an object back."""


@dataclass
class Store(Generic[V]):
    """The views of one kind."""

    views: dict[Key, dict[str, V]] = field(default_factory=lambda: defaultdict(dict))
    deleted: dict[str, None] = field(default_factory=dict)
    dropped: Callable[[V], None] = lambda _view: None
    """Called with each deleted object, as it was last seen."""

    def put(self, view: V, *, watched: bool = False) -> bool:
        """Store the view unless it is known, or a newer version is. True if it was stored. `watched`: a watch shows it;
        otherwise it is the answer to a call."""
        if view.uid in self.deleted:
            return False
        cached = self.views[view.key].get(view.name)
        if cached is not None:
            known, new = cached.resource_version, view.resource_version
            if new < known or (new == known and (watched or view == cached)):
                return False
        self.views[view.key][view.name] = view
        return True

    def drop(self, view: V) -> None:
        """Forget a deleted object for good."""
        self.dropped(view)
        self.deleted[view.uid] = None
        if len(self.deleted) > TOMBSTONES:
            del self.deleted[next(iter(self.deleted))]
        self.forget(view)

    def confirm(self, view: V) -> bool:
        """Store a live read of an object, even if the watch reported its deletion: a watch says so, too, when an object
        loses the label that is watched. True if it was stored."""
        self.deleted.pop(view.uid, None)
        return self.put(view)

    def forget(self, view: V) -> None:
        """Forget an object until it is seen again."""
        siblings = self.views.get(view.key, {})
        cached = siblings.get(view.name)
        if cached is not None and cached.uid == view.uid:
            del siblings[view.name]
        if not siblings:
            self.views.pop(view.key, None)

    def forget_namespace(self, namespace: str) -> None:
        """Forget the objects of a namespace until they are seen again."""
        for view in self._all(namespace):
            self.forget(view)

    def replace(
        self, listed: Iterable[V], listed_at: int, without_view: Collection[str] = (), namespace: str = ""
    ) -> set[Key]:
        """Take over a complete listing, of a namespace or of the cluster, made at a resourceVersion. Returns the keys
        that it changed. `without_view` are the uids of listed objects that have no view; they may become readable
        again."""
        changed: set[Key] = set()
        uids: set[str] = set()
        for view in listed:
            uids.add(view.uid)
            if self.put(view):
                changed.add(view.key)
        for view in self._all(namespace):
            if view.uid not in uids and view.resource_version <= listed_at:
                if view.uid in without_view:
                    self.forget(view)
                else:
                    self.drop(view)
                changed.add(view.key)
        return changed

    def _all(self, namespace: str) -> list[V]:
        """The views of a namespace; of all namespaces without one."""
        inside = [siblings for key, siblings in self.views.items() if namespace in ("", key[0])]
        return [view for siblings in inside for view in siblings.values()]

    def uids(self) -> set[str]:
        return {view.uid for siblings in self.views.values() for view in siblings.values()}

    def of(self, key: Key) -> tuple[V, ...]:
        return tuple(self.views.get(key, {}).values())


@dataclass
class JobStore(Store[JobView]):
    """FineTuneJobs, and which of them wait for which. A change of a job's summary wakes the jobs that wait for it, also
    if a listing or one of the operator's own writes shows it first."""

    wake: Callable[[Key], object] = lambda _key: None
    changed: Callable[[JobView | None, JobView | None], None] = lambda _before, _after: None
    """Called with each new version of a job; without one when the job is forgotten."""
    waiting: dict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))
    """The jobs that wait for a job, which need not exist."""

    def put(self, view: JobView, *, watched: bool = False) -> bool:
        cached = self.get(view.key)
        stored = super().put(view, watched=watched)
        if stored:
            self._changed(view.key, cached, view)
        return stored

    def forget(self, view: JobView) -> None:
        cached = self.get(view.key)
        super().forget(view)
        if cached is not None and cached.uid == view.uid:
            self._changed(view.key, cached, None)

    def get(self, key: Key) -> JobView | None:
        return next(iter(self.of(key)), None)

    def _changed(self, key: Key, before: JobView | None, after: JobView | None) -> None:
        self.changed(before, after)
        for other in {(key[0], name) for name in before.dependencies} if before else ():
            self.waiting[other].discard(key)
            if not self.waiting[other]:
                del self.waiting[other]
        for other in {(key[0], name) for name in after.dependencies} if after else ():
            self.waiting[other].add(key)
        if before is None or after is None or before.summary != after.summary:
            for waiting in self.waiting.get(key, ()):
                self.wake(waiting)


@dataclass
class DepartedPods:
    """Training pods that are deleted, as they were last seen. The status learns for how long they held GPUs only when
    their run has ended."""

    pods: dict[Key, dict[str, PodView]] = field(default_factory=lambda: defaultdict(dict))
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def add(self, pod: PodView) -> None:
        if pod.kind == "train" and pod.scheduled is not None and pod.uid not in self.pods.get(pod.key, {}):
            self.pods[pod.key][pod.uid] = replace(pod, released=pod.released or self.clock())

    def of(self, job: JobView) -> tuple[PodView, ...]:
        """Those of a job, until the status has them."""
        newest: Raw = next(reversed(entries(job.status, "attempts")), {})
        if newest.get("state") == "Ended" and not section(job.status, "gpu").get("run"):
            self.pods.pop(job.key, None)
        return tuple(self.pods.get(job.key, {}).values())

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self.pods.pop(key, None)


@dataclass
class Cache:
    """Every FineTuneJob, every child job and pod with the operator's label, and the presets of all namespaces."""

    jobs: JobStore = field(default_factory=JobStore)
    child_jobs: Store[ChildJobView] = field(default_factory=Store)
    pods: Store[PodView] = field(default_factory=Store)
    presets: Store[PresetsView] = field(default_factory=Store)
    unreadable: UnreadableObjects = field(default_factory=UnreadableObjects)
    departed: DepartedPods = field(default_factory=DepartedPods)

    def __post_init__(self) -> None:
        self.pods.dropped = self._departed
        self.jobs.dropped = lambda job: self.departed.forget(job.key)

    def _departed(self, pod: PodView) -> None:
        if self.job(pod.key) is not None:
            self.departed.add(pod)

    def job(self, key: Key) -> JobView | None:
        return self.jobs.get(key)

    def job_keys(self) -> set[Key]:
        """The keys of all FineTuneJobs."""
        return set(self.jobs.views)

    def awaiting_presets(self, namespace: str) -> set[Key]:
        """The keys of the jobs of a namespace that wait until its presets can be read."""
        keys = (key for key in self.job_keys() if key[0] == namespace)
        return {key for key in keys if (job := self.job(key)) and job.status.get("reason") == Reason.PRESETS_INVALID}

    def partly_scheduled(self) -> tuple[JobView, ...]:
        """The jobs of all namespaces that hold some nodes and lack others."""
        jobs = (job for key in self.job_keys() if (job := self.job(key)) and not job.deleting)
        return tuple(job for job in jobs if job.status.get("reason") == Reason.PARTLY_SCHEDULED)

    def orphans(self) -> list[ChildJobView]:
        """Child jobs that stayed when somebody deleted their FineTuneJob alone, or that somebody took from it. They are
        neither used nor deleted. Those that the garbage collector is about to delete are among them."""
        owners = {key: job.uid for key in self.job_keys() if (job := self.job(key))}
        children = (child for siblings in self.child_jobs.views.values() for child in siblings.values())
        return [child for child in children if not child.deleting and owners.get(child.key) != child.owner_uid]
