"""What other jobs made is what it was when this job was accepted: held to the digests in its references.

Called by preparation, and by the launcher before each training, which may be days later.
"""

from collections.abc import Callable, Iterable

from finetune_api.contract import ResolvedJob
from finetune_api.source import PvcPath, parse

from finetune_trainer.errors import InvalidData
from finetune_trainer.fetch.places import Fetched, Places
from finetune_trainer.fetch.source import fetch


def check(job: ResolvedJob, fetched: Iterable[Fetched]) -> None:
    """What other jobs made, and the models that it goes on, are what they were. Raises InvalidData. Whether a model's
    own code runs is each job's choice, so it is left out of what two jobs must agree in."""
    found = {got.uri: got for got in fetched}
    for one in job.references:
        made, artifact = one.artifact, found.get(one.artifact.uri)
        if artifact is not None and artifact.digest != made.digest:
            raise InvalidData(
                f"{made.uri}, the artifact of FineTuneJob {one.job}, is no longer what it was when this job was"
                f" accepted: {made.digest[:19]} then, {artifact.digest[:19]} now. Restore it, or make {one.job} and"
                " this job again"
            )
        base = found.get(made.base) if made.base else None
        now = base.digest_without_code if base else None
        if now is not None and made.base_digest is not None and now != made.base_digest:
            raise InvalidData(
                f"{made.base}, which the artifact of FineTuneJob {one.job} goes on, is no longer what that job was"
                f" trained on: {made.base_digest[:19]} then, {now[:19]} now. Name the revision that it was, or make"
                f" {one.job} and this job again"
            )


def check_again(job: ResolvedJob, prepared: Iterable[str], places: Places, check_stop: Callable[[], None]) -> None:
    """The same of those sources among ``prepared`` that are on volumes, where anybody may write; what was fetched lies
    in the cache under its own digest. A file is read again only where its size or time has changed."""
    named = {uri for one in job.references for uri in (one.artifact.uri, one.artifact.base) if uri}
    mounted = sorted(uri for uri in named.intersection(prepared) if isinstance(parse(uri), PvcPath))
    check(job, [fetch(uri, "model", places, check_stop=check_stop) for uri in mounted])
