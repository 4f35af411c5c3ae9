"""`fetch`: one function for every scheme of a source. Called by preparation, through the package."""

from finetune_api import source
from finetune_api.source import ConfigMapKey, HubPath, PvcPath, S3Path

from finetune_trainer.fetch import digests, mounted
from finetune_trainer.fetch.context import CheckStop, FetchContext, Fetched, Progress, Request, SourceKind


def _ignore(*_: int) -> None:
    """The default for callers that need no progress and never stop."""


def fetch(
    uri: str,
    kind: SourceKind,
    context: FetchContext,
    *,
    split: str | None = None,
    subset: str | None = None,
    code: bool = False,
    progress: Progress = _ignore,
    check_stop: CheckStop = _ignore,
) -> Fetched:
    """Make a source readable. ``check_stop`` may raise at any moment. Set ``code`` only where the job and the
    installation both allow a model's own Python files to run.

    Files from a hub or a bucket are checked against the checksums that the server gives. Raises NotFound,
    AccessDenied, SourceUnreachable, InvalidSpec, NoSpace.
    """
    place = source.parse(uri)
    if isinstance(place, PvcPath | ConfigMapKey):
        path = mounted.find(uri, context.volumes, context.config_maps)
        volume = context.volumes[place.claim] if isinstance(place, PvcPath) else None
        return Fetched(uri, path, digests.hash_files(path, uri, context.cache, progress, check_stop, volume), None)
    request = Request(uri, kind, split, subset, code)
    # Hub and S3 libraries take a second to import, so they are imported only when needed.
    if isinstance(place, HubPath):
        from finetune_trainer.fetch import hub

        return hub.fetch(request, place, context, progress, check_stop)
    assert isinstance(place, S3Path)
    from finetune_trainer.fetch import s3

    return s3.fetch(request, place, context, progress, check_stop)
