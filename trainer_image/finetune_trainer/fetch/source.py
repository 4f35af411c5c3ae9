"""One function for every kind of source. Called by preparation, through the package."""

from collections.abc import Callable

from finetune_api import source
from finetune_api.source import ConfigMapKey, HubPath, PvcPath, S3Path

from finetune_trainer.fetch import digest, mounted
from finetune_trainer.fetch.places import Fetched, Kind, Places


def _unheard(*_: int) -> None:
    """Where nobody listens to progress, and nobody asks to stop."""


def fetch(
    uri: str,
    kind: Kind,
    places: Places,
    *,
    split: str | None = None,
    subset: str | None = None,
    code: bool = False,
    progress: Callable[[int, int], None] = _unheard,
    check_stop: Callable[[], None] = _unheard,
) -> Fetched:
    """Make a source readable: ``progress`` hears (bytes done, bytes in all), ``check_stop`` may raise at any moment.
    With ``code`` a model's own Python files come along; only where job and installation both let them run.

    What comes from a hub or a bucket is checked against what the server says it is. Raises NotFound, AccessDenied,
    SourceUnreachable, InvalidSpec, NoSpace.
    """
    place = source.parse(uri)
    if isinstance(place, PvcPath | ConfigMapKey):
        path = mounted.find(uri, places.volumes, places.config_maps)
        volume = places.volumes[place.claim] if isinstance(place, PvcPath) else None
        return Fetched(uri, path, digest.of(path, uri, places.cache, progress, check_stop, volume), None)
    # The libraries of hubs and buckets take a second to import: only who needs one pays.
    if isinstance(place, HubPath):
        from finetune_trainer.fetch import hub

        return hub.fetch(uri, place, kind, places, split, subset, code, progress, check_stop)
    assert isinstance(place, S3Path)
    from finetune_trainer.fetch import s3

    return s3.fetch(uri, place, kind, places, split, code, progress, check_stop)
