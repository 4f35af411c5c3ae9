"""kopf's part: watching. A handler keeps what it is shown and queues the FineTuneJob that it concerns; no I/O.

Only on.event: it stores nothing on the objects, adds no finalizer and costs least.
"""

from collections.abc import Callable
from typing import Any

import kopf
from finetune_api.job import GROUP, PLURAL, VERSION

from finetune_operator.cache import Cache, Parse, Shelf, V
from finetune_operator.health import WatchLag
from finetune_operator.names import LABEL_MANAGED, MANAGED_SELECTOR
from finetune_operator.observed import Key, batch_view, job_view, pod_view


def kopf_settings(settings: kopf.OperatorSettings) -> None:
    """Make kopf a plain, quiet watcher."""
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.server_timeout = 600
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    for selector in ("jobs.v1.batch", "pods.v1"):
        settings.watching.label_selectors[selector] = MANAGED_SELECTOR


def registry(cache: Cache, lag: WatchLag, add: Callable[[Key], None]) -> kopf.OperatorRegistry:
    """The three watches."""
    handlers = kopf.OperatorRegistry()

    def take(event: Any, shelf: Shelf[V], parse: Parse[V]) -> tuple[V | None, V | None]:
        """Keep the event's object: (what was known, what is new); None as new when it is no news."""
        raw = event["object"]
        view = parse(raw)
        if view is None:
            return None, None
        known = next((v for v in shelf.of(view.key) if v.name == view.name), None)
        if event["type"] == "DELETED":
            lag.gone(view.uid)
            shelf.drop(view)
            return known, view
        lag.seen(view.uid, view.resource_version)
        return known, view if shelf.put(view) else None

    # A registry of one's own starts without kopf's ways to log in; this one knows what `Cluster.connect` knows.
    @kopf.on.login(registry=handlers)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**arguments)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def on_finetunejob(event: Any, **_: Any) -> None:
        known, view = take(event, cache.jobs, job_view)
        # What only the trainer wrote is nothing to act on.
        if view is not None and (event["type"] == "DELETED" or not view.same_for_us(known)):
            add(view.key)

    @kopf.on.event("batch", "v1", "jobs", labels={LABEL_MANAGED: "true"}, registry=handlers)
    async def on_job(event: Any, **_: Any) -> None:
        _known, view = take(event, cache.batches, batch_view)
        if view is not None:
            add(view.key)

    @kopf.on.event("v1", "pods", labels={LABEL_MANAGED: "true"}, registry=handlers)
    async def on_pod(event: Any, **_: Any) -> None:
        _known, view = take(event, cache.pods, pod_view)
        if view is not None:
            add(view.key)

    return handlers
