"""What a job is prepared from: its data sets and models, fetched."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from finetune_api.contract import ResolvedJob
from finetune_api.data import DatasetSpec

from finetune_trainer.errors import InvalidData
from finetune_trainer.fetch import FetchContext, Fetched, SourceKind, fetch
from finetune_trainer.model import model_files
from finetune_trainer.prepare.progress import PrepareProgress
from finetune_trainer.prepare.referenced_models import ReferencedModel, fetch_referenced_models


class FetchedDataset(NamedTuple):
    """A data set and its files."""

    spec: DatasetSpec
    fetched: Fetched


@dataclass(frozen=True)
class Inputs:
    """See the module."""

    train: list[FetchedDataset]
    evaluation: list[FetchedDataset]
    model: Fetched
    adapter: Fetched | None
    """An existing adapter, which the job continues or merges."""
    referenced: list[ReferencedModel]

    @property
    def datasets(self) -> list[FetchedDataset]:
        """All data sets, those for training first."""
        return [*self.train, *self.evaluation]

    @property
    def models(self) -> list[Fetched]:
        """All models, adapters and base models."""
        adapters = [self.adapter] if self.adapter else []
        others = [source for model in self.referenced for source in (model.fetched, model.base) if source]
        return [self.model, *adapters, *others]

    @property
    def sources(self) -> list[Fetched]:
        """Everything that was fetched."""
        return [*self.models, *(dataset.fetched for dataset in self.datasets)]


def fetch_inputs(
    job: ResolvedJob, context: FetchContext, progress: PrepareProgress, check_stop: Callable[[], None]
) -> Inputs:
    """Fetch all that the job names. Raises NotFound, AccessDenied, SourceUnreachable, InvalidSpec, NoSpace."""

    def fetched(
        uri: str, kind: SourceKind, *, split: str | None = None, subset: str | None = None, code: bool = False
    ) -> Fetched:
        progress.report("Fetching")
        return fetch(
            uri,
            kind,
            context,
            split=split,
            subset=subset,
            code=code,
            progress=lambda done, total: progress.report("Fetching", done, total),
            check_stop=check_stop,
        )

    def fetched_dataset(spec: DatasetSpec) -> FetchedDataset:
        return FetchedDataset(spec, fetched(spec.source, "data", split=spec.split, subset=spec.subset))

    train = [fetched_dataset(spec) for spec in job.datasets]
    evaluated = (job.evaluation.datasets or []) if job.evaluation else []
    evaluation = [fetched_dataset(spec) for spec in evaluated]
    model = fetched(job.model.source, "model", code=model_files.remote_code(job))
    adapter = fetched(job.tuning.adapter.source, "adapter") if job.tuning.adapter else None
    referenced = fetch_referenced_models(job, lambda uri: model if uri == job.model.source else fetched(uri, "model"))
    return Inputs(train, evaluation, model, adapter, referenced)


def check_unchanged(dataset: FetchedDataset, context: FetchContext, check_stop: Callable[[], None]) -> None:
    """Check that a data set on a volume has not changed while it was read: then its rows would not be those of its
    digest. A file with the same size and time is not read again. Raises InvalidData."""
    spec, fetched = dataset
    if fetched.path.resolve().is_relative_to(context.cache.resolve()):
        return
    now = fetch(spec.source, "data", context, split=spec.split, subset=spec.subset, check_stop=check_stop)
    if now.digest != fetched.digest:
        raise InvalidData(
            f"{spec.source} changed while it was read: its digest was {fetched.digest[:19]} and is {now.digest[:19]}"
            " now. Start the job again when the files no longer change"
        )
