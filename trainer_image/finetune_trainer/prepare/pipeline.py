"""The prepare phase from top to bottom: from a job to the data and models that training starts from, on CPUs alone.

The worker calls `prepare`. It fetches what the job names, checks and tokenizes every row into the workspace's cache,
checks that rows fit the model and the model the GPU, writes the report, and finally PREPARED.json. It may be killed at
any moment: the next run ends with the same data.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.contract import ResolvedJob
from finetune_api.data import UNITS
from finetune_api.status import Prepared, Progress

from finetune_trainer.data.splits import open_split
from finetune_trainer.data.templates import ChatTemplate
from finetune_trainer.data.tokenize import stop_token
from finetune_trainer.fetch import FetchContext, Fetched, reference_digests
from finetune_trainer.fetch.prune import prune
from finetune_trainer.model import model_files
from finetune_trainer.prepare import (
    build_data,
    data_cache,
    model_check,
    referenced_models,
    report,
    strangers,
    tokenizer_identity,
)
from finetune_trainer.prepare.build_plan import BuildPlan, DatasetSource, ReadProgress
from finetune_trainer.prepare.data_cache import BuildSize, CacheEntry
from finetune_trainer.prepare.dataset_statistics import DatasetStatistics, not_used, shown_names
from finetune_trainer.prepare.footprint import Footprint
from finetune_trainer.prepare.inputs import Inputs, check_unchanged, fetch_inputs
from finetune_trainer.prepare.limit_check import check_limits, longest_sample, trained_length
from finetune_trainer.prepare.memory_check import MemoryNeeds, check_memory, footprint_of
from finetune_trainer.prepare.progress import MIB, PrepareProgress
from finetune_trainer.prepare.worker_pool import Tokenization, row_limit
from finetune_trainer.run import ignore
from finetune_trainer.runtime import cpus
from finetune_trainer.workspace import fencing, prepared
from finetune_trainer.workspace.folders import Folders
from finetune_trainer.workspace.prepared import PreparedJob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune_trainer.model.experts import AdaptedWeights

log = logging.getLogger(__name__)

FitResult = tuple[Footprint | None, MemoryNeeds | None]
SMALL = 4 * MIB
"""Bytes of data that a process tokenizes before worker processes would have started."""


def prepare(
    job: ResolvedJob,
    folders: Folders,
    run_id: str,
    context: FetchContext,
    report_progress: Callable[[Progress], None] = ignore,
    check_stop: Callable[[], None] = ignore,
    attempt: int = 1,
) -> PreparedJob:
    """The whole phase. Raises the errors of ``finetune_trainer.errors``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    progress = PrepareProgress(attempt, report_progress)
    log.info("Preparing %s, run %s", job.name, run_id)

    # Fetch data and models; artifacts of other jobs must be those that were accepted
    inputs = fetch_inputs(job, context, progress, check_stop)
    reference_digests.check(job, inputs.models)

    # Check the models, and load the tokenizer
    progress.report("Validating")
    adapted = _check_own_model(job, inputs)
    tokenization, tokenizer_digest = load_tokenization(job, inputs.model)
    for model in inputs.referenced:
        with strangers.told(f"{model.field}: {model.fetched.uri}"):
            referenced_models.check(job, model, tokenization.tokenizer)

    # Read, check, tokenize, pack and store all rows, unless the cache has them
    template = tokenization.template.facts() if tokenization.template else None
    key = data_cache.entry_key(job, [dataset.fetched.digest for dataset in inputs.datasets], tokenizer_digest, template)
    entry = _tokenized_data(job, folders, context, inputs, tokenization, key, progress, check_stop)
    statistics = [DatasetStatistics.from_dict(dataset) for dataset in entry.manifest["datasets"]]

    # Check that rows fit the model, and estimate memory
    footprint, needs = _check_fit(job, inputs, tokenization, entry)
    check_stop()

    # Report, unless another job has saved a checkpoint in the directory meanwhile
    fencing.check_vacant(folders, job)
    warning = _warning(entry, adapted)
    summary = _summary(job, entry, statistics, needs, warning)
    content = {
        "job": job.name,
        **{fact: entry.manifest[fact] for fact in ("splits", "digest", "bytes")},
        "sources": {source.uri: {"digest": source.digest, "revision": source.revision} for source in inputs.sources},
        "template": template,
        "warning": warning,
        "adapted": asdict(adapted) if adapted else None,
        "attention": model_check.attention(job, inputs.model.path),
        "microBatch": micro_batch_note(job, summary.longest_row),
        "sample": report.sample_text(tokenization.tokenizer, open_split(entry.folder, "train")[:2], UNITS[job.stage]),
    }
    report.write_report(folders.reports, content, statistics, needs)
    result = PreparedJob(
        model=inputs.model.path,
        adapter=inputs.adapter.path if inputs.adapter else None,
        data=entry.folder,
        splits=list(entry.manifest["splits"]),
        summary=summary,
        digests={source.uri: source.digest for source in inputs.sources},
        revisions={source.uri: source.revision for source in inputs.sources if source.revision},
        base_digest=inputs.model.digest_without_code,
        template=template or {},
        tokenizer_digest=tokenizer_digest,
        memory=asdict(footprint) if footprint else None,
        **referenced_models.model_folders(inputs.referenced),
    )
    prepared.write(folders, job, result)
    prune(context.cache)
    log.info("%s", describe(summary, job.stage))
    return result


def _warning(entry: CacheEntry, adapted: "AdaptedWeights | None") -> str | None:
    """What does not prevent training, about the data and the adapter."""
    return "; ".join(filter(None, (entry.manifest["warning"], report.experts_left_out(adapted)))) or None


def describe(summary: Prepared, stage: str) -> str:
    """The prepared data in a line, for the status and the log."""
    left_out = f", {summary.invalid_rows} broken rows left out" if summary.invalid_rows else ""
    left_out += f", {summary.left_out_rows} left out for cutoffLength" if summary.left_out_rows else ""
    cut = f", {summary.truncated_rows} cut at cutoffLength" if summary.truncated_rows else ""
    held_out = f" and {summary.evaluation_rows} to evaluate on" if summary.evaluation_rows else ""
    trained = f" of which {summary.trained_tokens} trained" if summary.trained_tokens else ""
    warning = f". Warning: {summary.warning}" if summary.warning else ""
    packs = f" in {summary.packs} packs" if summary.packs is not None else ""
    unused = f". Not used: {summary.not_used}" if summary.not_used else ""
    rows = f"{summary.rows} {UNITS[stage]} to train on{packs}{held_out}"
    return f"{rows}, {summary.tokens} tokens{trained}{left_out}{cut}{unused}{warning}"


def _check_own_model(job: ResolvedJob, inputs: Inputs) -> "AdaptedWeights | None":
    model, source = inputs.model.path, job.model.source
    model_files.check_model(model, source)
    if model_files.remote_code(job):
        model_files.check_remote_code(model, source)
    return model_check.check_model(job, model, inputs.adapter.path if inputs.adapter else None)


def load_tokenization(job: ResolvedJob, model: Fetched) -> tuple[Tokenization, str]:
    """The tokenizer with its template, and the digest of its behaviour. Raises InvalidSpec, whatever the files hold."""
    with strangers.told(f"model.source: the tokenizer of {job.model.source}"):
        loaded = _load_tokenization(job, model)
        return loaded, tokenizer_identity.digest(loaded.tokenizer, model.digest)


def _load_tokenization(job: ResolvedJob, model: Fetched) -> Tokenization:
    from finetune_trainer.model import tokenizer  # transformers

    name = job.template.name
    loaded: PreTrainedTokenizerBase = tokenizer.load(
        model.path, job.model, name, allow_remote_code=model_files.remote_code(job)
    )
    if job.stage == "pt":
        return Tokenization(loaded, None, row_limit(job))
    stop_ids = frozenset(tokenizer.stop_ids(loaded, model.path, name))
    template = ChatTemplate(loaded, stop_ids, job.template)
    if job.stage == "ppo":
        stop_token(template)  # raises before rows are read
    return Tokenization(loaded, template, row_limit(job))


def _tokenized_data(
    job: ResolvedJob,
    folders: Folders,
    context: FetchContext,
    inputs: Inputs,
    tokenization: Tokenization,
    key: str,
    progress: PrepareProgress,
    check_stop: Callable[[], None],
) -> CacheEntry:
    """The entry of the data cache. Raises InvalidData, NoSpace."""
    size = BuildSize()

    def report_read(read: ReadProgress) -> None:
        size.read, size.total = read.size, read.total
        progress.report(read.activity, read.size, read.total, read.rows)

    plan = BuildPlan(
        job=job,
        train=[DatasetSource(spec, fetched.path) for spec, fetched in inputs.train],
        evaluate=[DatasetSource(spec, fetched.path) for spec, fetched in inputs.evaluation],
        tokenization=tokenization,
        processes=_processes(job, [fetched.path for _, fetched in inputs.datasets]),
        reports=folders.reports,
        invalid_rows=f"{_reports(job)}/{build_data.INVALID_ROWS}",
        report_progress=report_read,
        check_stop=check_stop,
    )
    size.copies = 2 if plan.draws else 1

    def build(folder: Path) -> dict[str, Any]:
        facts = build_data.build(plan, folder)
        for dataset in inputs.datasets:
            check_unchanged(dataset, context, check_stop)
        return facts

    try:
        entry = data_cache.get_or_build(context, key, build, check_stop, size)
    except build_data.UnusableData as error:
        report.write_report(folders.reports, {"job": job.name, "error": str(error)}, error.statistics, None)
        raise
    build_data.copy_invalid_rows(entry.folder, folders.reports)
    log.info("Prepared data: cache/data/%s%s", key, ", from the cache" if entry.cached else "")
    return entry


def _processes(job: ResolvedJob, paths: list[Path]) -> int:
    """Number of processes that tokenize."""
    cores = cpus.usable()
    size = sum(file.stat().st_size for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    return 1 if size < SMALL else min(job.runtime.prepare_processes or cores, cores * 2)


def _check_fit(job: ResolvedJob, inputs: Inputs, tokenization: Tokenization, entry: CacheEntry) -> FitResult:
    """Rows fit the models. Returns the memory of a GPU, if it can be estimated.
    Raises InvalidSpec."""
    splits: dict[str, dict[str, int]] = entry.manifest["splits"]
    model = inputs.model.path
    check_limits(job, inputs, tokenization, splits)
    packs = job.training.packing in ("bfd", "wrapped")
    length = job.training.cutoff_length if packs else trained_length(job, splits)
    adapter = inputs.adapter.path if inputs.adapter else None
    footprint = footprint_of(job, model, length, adapter, inputs.referenced)
    return footprint, check_memory(job, footprint) if footprint else None


def _summary(
    job: ResolvedJob,
    entry: CacheEntry,
    statistics: list[DatasetStatistics],
    needs: MemoryNeeds | None,
    warning: str | None,
) -> Prepared:
    """The part of the status."""
    splits = entry.manifest["splits"]
    train = splits["train"]
    in_tokens = job.training.micro_batch_tokens is not None
    longest = longest_sample(job, open_split(entry.folder, "train")) if in_tokens else None
    return Prepared(
        digest=entry.manifest["digest"],
        rows=train["rows"],
        evaluation_rows=sum(facts["rows"] for name, facts in splits.items() if name != "train"),
        tokens=train["tokens"],
        longest_row=longest,
        trained_tokens=train["trained_tokens"],
        invalid_rows=sum(dataset.broken for dataset in statistics),
        truncated_rows=sum(dataset.truncated for dataset in statistics),
        left_out_rows=sum(dataset.left_out for dataset in statistics) or None,
        packs=train["packs"],
        not_used=shown_names(unused) if (unused := not_used(statistics)) else None,
        warning=warning,
        report=f"{_reports(job)}/{report.NAME}.md",
        gpu_memory_bytes=needs.total if needs else None,
        micro_batch_size=needs.proposed if needs and needs.unit == "rows" else None,
    )


def micro_batch_note(job: ResolvedJob, longest_row: int | None) -> str | None:
    """What training.microBatchTokens does not limit, if anything."""
    tokens = job.training.micro_batch_tokens
    if tokens is None or longest_row is None or longest_row <= tokens:
        return None
    return (
        f"training.microBatchTokens is {tokens:,}, and the longest row has {longest_row:,} tokens. So micro-batches"
        f" have up to {longest_row:,} tokens"
    )


def _reports(job: ResolvedJob) -> str:
    """The job's reports, relative to the workspace."""
    return f"jobs/{job.name}/reports"
