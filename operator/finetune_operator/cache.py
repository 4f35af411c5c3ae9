"""What the watches have shown, as slim views, keyed by the FineTuneJob they belong to.

Nothing ever goes back in time: an object replaces a cached one only with a higher resourceVersion (comparable within a
kind since Kubernetes stores them in etcd). So the operator's own writes can be put in at once, and a watch event that
is older than them changes nothing. That, and not waiting, is what keeps plans from acting on stale views.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from finetune_operator.observed import BatchView, JobView, Key, PodView, Raw


class View(Protocol):
    """Anything that can be kept."""

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
    """Makes a view of an object; None for one that isn't ours."""

    def __call__(self, raw: Raw, /) -> V_co | None: ...


TOMBSTONES = 10_000
"""Deleted uids remembered, so that a late event doesn't bring an object back."""


@dataclass
class Shelf(Generic[V]):
    """The views of one kind."""

    views: dict[Key, dict[str, V]] = field(default_factory=lambda: defaultdict(dict))
    deleted: dict[str, None] = field(default_factory=dict)

    def put(self, view: V) -> bool:
        """Keep the view unless something newer is known. True when it was kept."""
        if view.uid in self.deleted:
            return False
        known = self.views[view.key].get(view.name)
        if known is not None and known.resource_version >= view.resource_version:
            return False
        self.views[view.key][view.name] = view
        return True

    def drop(self, view: V) -> None:
        """Forget a deleted object."""
        self.deleted[view.uid] = None
        if len(self.deleted) > TOMBSTONES:
            del self.deleted[next(iter(self.deleted))]
        siblings = self.views.get(view.key, {})
        known = siblings.get(view.name)
        if known is not None and known.uid == view.uid:
            del siblings[view.name]
        if not siblings:
            self.views.pop(view.key, None)

    def replace(self, listed: Iterable[V], listed_at: int) -> set[Key]:
        """Bring in a complete listing made at a resourceVersion. Returns the keys for which it brought news."""
        news: set[Key] = set()
        seen: set[str] = set()
        for view in listed:
            seen.add(view.uid)
            if self.put(view):
                news.add(view.key)
        for view in [v for siblings in self.views.values() for v in siblings.values()]:
            if view.uid not in seen and view.resource_version <= listed_at:
                self.drop(view)
                news.add(view.key)
        return news

    def of(self, key: Key) -> tuple[V, ...]:
        return tuple(self.views.get(key, {}).values())


@dataclass
class Jobs(Shelf[JobView]):
    """FineTuneJobs, and which of them wait for which. A change that they would speak of wakes them, however it became
    known: by the watch, by a listing or by a write of our own."""

    wake: Callable[[Key], object] = lambda _key: None
    waiting: dict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))
    """Who waits for a job; also for one that isn't there."""

    def put(self, view: JobView) -> bool:
        known = self.one(view.key)
        kept = super().put(view)
        if kept:
            self._changed(view.key, known, view)
        return kept

    def drop(self, view: JobView) -> None:
        known = self.one(view.key)
        super().drop(view)
        if known is not None and known.uid == view.uid:
            self._changed(view.key, known, None)

    def one(self, key: Key) -> JobView | None:
        return next(iter(self.of(key)), None)

    def _changed(self, key: Key, before: JobView | None, after: JobView | None) -> None:
        for other in {(key[0], name) for name in before.waits_for} if before else ():
            self.waiting[other].discard(key)
            if not self.waiting[other]:
                del self.waiting[other]
        for other in {(key[0], name) for name in after.waits_for} if after else ():
            self.waiting[other].add(key)
        if before is None or after is None or before.standing != after.standing:
            for waiting in self.waiting.get(key, ()):
                self.wake(waiting)


@dataclass
class Cache:
    """Every FineTuneJob, and every Job and pod that carries our label."""

    jobs: Jobs = field(default_factory=Jobs)
    batches: Shelf[BatchView] = field(default_factory=Shelf)
    pods: Shelf[PodView] = field(default_factory=Shelf)

    def job(self, key: Key) -> JobView | None:
        return self.jobs.one(key)

    def known(self) -> set[Key]:
        """Every FineTuneJob that is known."""
        return set(self.jobs.views)
