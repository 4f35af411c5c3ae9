"""The watches, by kopf. A handler stores an object in the cache and queues its FineTuneJob; it does no I/O.

Only on.event is used: it stores nothing on the objects, adds no finalizer and costs least.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import chain, repeat
from typing import Any, cast

import kopf
from finetune_api.job import GROUP, KIND, PLURAL, VERSION
from finetune_api.presets import CONFIG_MAP

from finetune_operator.cache import Cache, Parse, Store, V
from finetune_operator.health import WatchLag
from finetune_operator.names import LABEL_MANAGED, MANAGED_SELECTOR
from finetune_operator.views.child_job import child_job_view
from finetune_operator.views.job import job_view
from finetune_operator.views.metadata import Key, section
from finetune_operator.views.pod import pod_view
from finetune_operator.views.presets import presets_view


class NoDiffs(kopf.DiffBaseStorage):
    """kopf compares each object with an earlier version of it, for handlers that this operator does not have. The copy
    alone would cost more than all the rest of an event."""

    def build(self, **_: object) -> kopf.BodyEssence:
        return cast("kopf.BodyEssence", {})

    def fetch(self, **_: object) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: object) -> None:
        return


class Patience:
    """Pauses before the next try of a request, without an end."""

    def __iter__(self) -> Iterator[float]:
        return chain((1, 2, 5, 10), repeat(20))


def kopf_settings(settings: kopf.OperatorSettings, namespaces: Collection[str] = ()) -> None:
    """kopf only watches, and logs little. It needs to list neither namespaces nor CRDs."""
    settings.scanning.disabled = True
    if namespaces:
        # A namespace that may not be watched, because it does not exist, must not end the watches of the others.
        settings.networking.error_backoffs = Patience()
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffs()
    settings.watching.server_timeout = 600
    settings.watching.chunk_size = 250
    # As long as it waits for the next event of an object, kopf keeps the whole last one: at a start, of every object.
    settings.queueing.idle_timeout = 0.1
    settings.networking.request_timeout = 30
    for selector in ("jobs.v1.batch", "pods.v1"):
        settings.watching.label_selectors[selector] = MANAGED_SELECTOR
    settings.watching.field_selectors["configmaps.v1"] = f"metadata.name={CONFIG_MAP}"


def registry(cache: Cache, lag: WatchLag, add: Callable[[Key], None]) -> kopf.OperatorRegistry:
    """The four watches."""
    handlers = kopf.OperatorRegistry()

    def ingest(event: Any, kind: str, store: Store[V], parse: Parse[V]) -> tuple[V | None, V | None]:
        """Store the event's object. Returns the cached view and the new view; the latter is None if nothing changed."""
        raw = event["object"]
        view = cache.unreadable.read(kind, parse, raw)
        if view is None:
            # The next listing drops an earlier view. The watch has done its part.
            lag.gone(str(section(raw, "metadata").get("uid")))
            return None, None
        cached = next((v for v in store.of(view.key) if v.name == view.name), None)
        if event["type"] == "DELETED":
            lag.gone(view.uid)
            store.drop(view)
            return cached, view
        lag.seen(view.uid, view.resource_version)
        return cached, view if store.put(view, watched=True) else None

    # Only kopf's default registry has a login handler. This one uses the same credentials as `Cluster.connect`.
    @kopf.on.login(registry=handlers)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**arguments)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def on_finetunejob(event: Any, **_: Any) -> None:
        cached, view = ingest(event, KIND, cache.jobs, job_view)
        # The operator does not act on most of what the trainer writes.
        if view is not None and (event["type"] == "DELETED" or not view.same_for_operator(cached)):
            add(view.key)

    @kopf.on.event("batch", "v1", "jobs", labels={LABEL_MANAGED: "true"}, registry=handlers)
    async def on_child_job(event: Any, **_: Any) -> None:
        _cached, view = ingest(event, "Job", cache.child_jobs, child_job_view)
        if view is not None:
            add(view.key)

    @kopf.on.event("v1", "pods", labels={LABEL_MANAGED: "true"}, registry=handlers)
    async def on_pod(event: Any, **_: Any) -> None:
        _cached, view = ingest(event, "Pod", cache.pods, pod_view)
        if view is not None:
            add(view.key)

    @kopf.on.event("v1", "configmaps", registry=handlers)
    async def on_presets(event: Any, **_: Any) -> None:
        _cached, view = ingest(event, "ConfigMap", cache.presets, presets_view)
        # Those that wait until the presets are repaired.
        for key in cache.awaiting_presets(view.namespace) if view is not None else ():
            add(key)

    return handlers
