"""The artifacts of other jobs that this job references: they must still have the digests that the job recorded.

Called by preparation, and by the launcher before each training, which may be days later.
"""

from collections.abc import Iterable

from finetune_api.contract import ResolvedJob
from finetune_api.source import PvcPath, parse

from finetune_trainer.errors import InvalidData
from finetune_trainer.fetch.context import CheckStop, FetchContext, Fetched
from finetune_trainer.fetch.dispatch import fetch


def check(job: ResolvedJob, fetched: Iterable[Fetched]) -> None:
    """Referenced artifacts, and the base models of referenced adapters, are unchanged. Raises InvalidData. A base is
    compared without Python files, because each job decides for itself whether a model's own code runs."""
    by_uri = {source.uri: source for source in fetched}
    for reference in job.references:
        recorded, artifact = reference.artifact, by_uri.get(reference.artifact.uri)
        if artifact is not None and artifact.digest != recorded.digest:
            raise InvalidData(
                f"{recorded.uri}, the artifact of FineTuneJob {reference.job}, has changed since this job was accepted:"
                f" its digest was {recorded.digest[:19]} and is {artifact.digest[:19]} now. Restore the artifact, or"
                f" create {reference.job} and this job again"
            )
        base = by_uri.get(recorded.base) if recorded.base else None
        now = base.digest_without_code if base else None
        if now is not None and recorded.base_digest is not None and now != recorded.base_digest:
            raise InvalidData(
                f"{recorded.base}, the base model of the artifact of FineTuneJob {reference.job}, has changed since"
                f" that job was trained: its digest was {recorded.base_digest[:19]} and is {now[:19]} now. Name the"
                f" revision that was used then, or create {reference.job} and this job again"
            )


def recheck_mounted(job: ResolvedJob, prepared: Iterable[str], context: FetchContext, check_stop: CheckStop) -> None:
    """`check` again for those of the ``prepared`` sources that are on volumes, where anybody may write. Fetched
    sources are in the cache under their own digest. A file is read again only when its size or time has changed."""
    referenced = {uri for ref in job.references for uri in (ref.artifact.uri, ref.artifact.base) if uri}
    on_volumes = sorted(uri for uri in referenced.intersection(prepared) if isinstance(parse(uri), PvcPath))
    check(job, [fetch(uri, "model", context, check_stop=check_stop) for uri in on_volumes])
