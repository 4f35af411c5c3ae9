"""The prepare phase: from a job to data and model that training can start from at once, on CPUs alone.

Called by ``worker``. Fetches what the job names, checks and tokenizes every row into the workspace's cache, looks
whether rows fit the model and the model the GPU, writes the report, and last PREPARED.json. Killed at any moment, the
next run ends with the same data.
"""

import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from finetune_api.contract import ResolvedJob
from finetune_api.data import UNITS, DatasetSpec
from finetune_api.status import Prepared, Progress

from finetune_trainer import prepared
from finetune_trainer.data.store import open_split
from finetune_trainer.data.templates.template import Template
from finetune_trainer.errors import InvalidData
from finetune_trainer.fetch import Fetched, Places, fetch, pins
from finetune_trainer.fetch.prune import prune
from finetune_trainer.model import folder as model_folder
from finetune_trainer.prepare import build, cache, memory, others, report, tokenizers
from finetune_trainer.prepare.findings import Findings
from finetune_trainer.prepare.pool import Tools, longest
from finetune_trainer.prepared import PreparedJob
from finetune_trainer.run import Folders, nothing

log = logging.getLogger(__name__)

Activity = Literal["Fetching"] | build.Activity
MIB = 1 << 20


class Reported:
    """status.progress while preparing."""

    def __init__(self, attempt: int, report: Callable[[Progress], None]) -> None:
        self._attempt, self._report = attempt, report

    def __call__(self, activity: Activity, done: int = 0, total: int = 0, rows: int | None = None) -> None:
        """``done`` bytes of ``total``; 0: it isn't known of how many."""
        percent = min(100, 100 * done // total) if total else 0
        step, steps = -(-done // MIB), -(-total // MIB)
        share = f" {step}/{steps} MiB ({percent}%)" if total else f" {step} MiB" if done else ""
        share += f", {rows} rows" if rows is not None else ""
        self._report(
            Progress(
                attempt=self._attempt,
                activity=activity,
                step=step,
                total_steps=steps,
                percent=percent,
                summary=f"{activity}{share}",
                last_update_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
        )


def run(
    job: ResolvedJob,
    folders: Folders,
    run_id: str,
    places: Places,
    report_progress: Callable[[Progress], None] = nothing,
    check_stop: Callable[[], None] = nothing,
    attempt: int = 1,
) -> PreparedJob:
    """All of it. Raises the errors of ``finetune_trainer.errors``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    say = Reported(attempt, report_progress)
    log.info("Preparing %s, run %s", job.name, run_id)

    # Fetch
    def fetched(uri: str, kind: Literal["model", "adapter", "data"], **more: Any) -> Fetched:
        def heard(done: int, total: int) -> None:
            say("Fetching", done, total)

        say("Fetching")
        return fetch(uri, kind, places, progress=heard, check_stop=check_stop, **more)

    def of_dataset(spec: DatasetSpec) -> Fetched:
        return fetched(spec.source, "data", split=spec.split, subset=spec.subset)

    sets = [(spec, of_dataset(spec)) for spec in job.datasets]
    held = [(spec, of_dataset(spec)) for spec in (job.evaluation.datasets or [])] if job.evaluation else []
    code = model_folder.may_run_code(job)
    model = fetched(job.model.source, "model", code=code)
    adapter = fetched(job.tuning.adapter.source, "adapter") if job.tuning.adapter else None
    more = others.fetch_others(job, lambda uri: model if uri == job.model.source else fetched(uri, "model"))
    models = [model, *([adapter] if adapter else []), *(got for one in more for got in (one.got, one.base) if got)]
    pins.check(job, models)

    # Check and tokenize, unless that was done before
    say("Validating")
    model_folder.check(model.path, job.model.source)
    if code:
        model_folder.check_code(model.path, job.model.source)
    memory.check_model(job, model.path, adapter.path if adapter else None)
    tools, template = _tools(job, model)
    tokens_digest = tokenizers.digest(tools.tokenizer, model.digest)
    for other in more:
        others.check(job, other, tools.tokenizer)
    contents = [got.digest for _, got in (*sets, *held)]
    key = cache.key(job, contents, tokens_digest, template)
    reports = f"jobs/{job.name}/reports"
    amount = cache.Input()

    def heard(read: build.Read) -> None:
        amount.size, amount.total = read.size, read.total
        say(read.activity, read.size, read.total, read.rows)

    plan = build.Plan(
        job=job,
        train=[build.Source(spec, got.path) for spec, got in sets],
        evaluate=[build.Source(spec, got.path) for spec, got in held],
        tools=tools,
        processes=_processes(job, [got.path for _, got in (*sets, *held)]),
        reports=folders.reports,
        invalid_rows=f"{reports}/{build.INVALID_ROWS}",
        report=heard,
        check_stop=check_stop,
    )
    amount.copies = 2 if plan.draws else 1

    def make(folder: Path) -> dict[str, Any]:
        facts = build.build(plan, folder)
        for spec, got in (*sets, *held):
            unchanged(spec, got, places, check_stop)
        return facts

    try:
        data, manifest, hit = cache.entry(places, key, make, check_stop, amount)
    except build.BrokenRows as error:
        report.write(folders.reports, {"job": job.name, "error": str(error)}, error.findings, None)
        raise
    build.list_invalid(data, folders.reports)
    log.info("Prepared data: cache/data/%s%s", key, ", made before" if hit else "")
    findings = [Findings.from_dict(found) for found in manifest["datasets"]]

    # Does it fit?
    splits: dict[str, dict[str, int]] = manifest["splits"]
    learnt = _learnt(job, max(facts["longest"] for facts in splits.values()))
    highest = max(facts["highest_id"] for facts in splits.values())
    new = bool(job.model.new_tokens or job.model.new_special_tokens)
    # A prompt of stage kto is also seen with another row's answer.
    seen = min(2 * learnt, job.training.cutoff_length) if job.stage == "kto" else learnt
    memory.check_rows(model.path, len(tools.tokenizer), new, seen, highest)
    packed = job.training.cutoff_length if job.training.packing in ("bfd", "wrapped") else learnt
    if job.training.packing == "bfd":
        from finetune_trainer.prepare import apart  # torch

        apart.check(job, model.path)
    needs = memory.needs(job, model.path, packed, adapter.path if adapter else None, more)
    check_stop()

    # Say so
    sources = [*models, *(got for _, got in sets + held)]
    train = splits["train"]
    summary = Prepared(
        digest=manifest["digest"],
        rows=train["rows"],
        evaluation_rows=sum(facts["rows"] for name, facts in splits.items() if name != "train"),
        tokens=train["tokens"],
        trained_tokens=train["trained_tokens"],
        invalid_rows=sum(found.broken for found in findings),
        truncated_rows=sum(found.truncated for found in findings),
        warning=manifest["warning"],
        report=f"{reports}/{report.NAME}.md",
        gpu_memory_bytes=needs.total if needs else None,
        micro_batch_size=needs.proposed if needs else None,
    )
    content = {
        "job": job.name,
        "splits": splits,
        "digest": manifest["digest"],
        "bytes": manifest["bytes"],
        "sources": {got.uri: {"digest": got.digest, "revision": got.revision} for got in sources},
        "template": template,
        "warning": manifest["warning"],
        "sample": report.sample(tools.tokenizer, open_split(data, "train")[:2], UNITS[job.stage]),
    }
    report.write(folders.reports, content, findings, needs)
    ready = PreparedJob(
        model=model.path,
        adapter=adapter.path if adapter else None,
        data=data,
        splits=list(splits),
        summary=summary,
        digests={got.uri: got.digest for got in sources},
        revisions={got.uri: got.revision for got in sources if got.revision},
        base_digest=model.digest_without_code,
        template=template or {},
        tokenizer_digest=tokens_digest,
        **_folders(more),
    )
    prepared.write(folders, job, ready)
    prune(places.cache)
    log.info("%s", describe(summary, job.stage))
    return ready


def unchanged(spec: DatasetSpec, read: Fetched, places: Places, check_stop: Callable[[], None]) -> None:
    """What is mounted can be written to while it is read, and then the rows are not those of its digest. Files that
    have kept size and time are not read again. Raises InvalidData."""
    if read.path.resolve().is_relative_to(places.cache.resolve()):
        return
    now = fetch(spec.source, "data", places, split=spec.split, subset=spec.subset, check_stop=check_stop)
    if now.digest != read.digest:
        raise InvalidData(
            f"{spec.source} changed while it was read: {read.digest[:19]} before, {now.digest[:19]} now. Start the job"
            " again when nobody writes to it any more"
        )


def describe(summary: Prepared, stage: str) -> str:
    """One line for people."""
    left_out = f", {summary.invalid_rows} broken ones left out" if summary.invalid_rows else ""
    cut = f", {summary.truncated_rows} cut at cutoffLength" if summary.truncated_rows else ""
    held = f" and {summary.evaluation_rows} to evaluate on" if summary.evaluation_rows else ""
    trained = f" of which {summary.trained_tokens} trained" if summary.trained_tokens else ""
    warning = f". Warning: {summary.warning}" if summary.warning else ""
    return f"{summary.rows} {UNITS[stage]} to train on{held}, {summary.tokens} tokens{trained}{left_out}{cut}{warning}"


def _learnt(job: ResolvedJob, row: int) -> int:
    """Tokens of the longest row to learn from, where the longest that was prepared has so many."""
    return row + job.ppo.max_new_tokens if job.ppo else min(row, job.training.cutoff_length)


def _folders(more: list[others.Other]) -> dict[str, Path | None]:
    names = {"reference": "reference", "rewardModel": "reward"}
    found: dict[str, Path | None] = {}
    for one in more:
        name = names[one.use]
        found |= {name: one.got.path, f"{name}_base": one.base.path if one.base else None}
    return found


def _tools(job: ResolvedJob, model: Fetched) -> tuple[Tools, dict[str, Any] | None]:
    """What makes tokens of rows, and how it does so in words."""
    from finetune_trainer.model import tokenizer

    tokens = tokenizer.load(model.path, job.model, job.template.name, allow_remote_code=model_folder.may_run_code(job))
    if job.stage == "pt":
        return Tools(tokens, None, longest(job)), None
    template = Template(tokens, frozenset(tokenizer.stop_ids(tokens, model.path, job.template.name)), job.template)
    return Tools(tokens, template, longest(job)), template.facts()


SMALL = 4 * MIB
"""Bytes of data that one process has tokenized before others have started."""


def _processes(job: ResolvedJob, paths: list[Any]) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = sum(file.stat().st_size for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    return 1 if size < SMALL else min(job.runtime.prepare_processes or cores, cores * 2)
