"""The steps that all stages share, from prepared rows to the artifact.

Called by their workflows, in the order of this file, on every rank.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainingArguments

from finetune_trainer import artifact, heartbeat
from finetune_trainer.checkpoints import choose
from finetune_trainer.checkpoints.saver import Saver
from finetune_trainer.data import order
from finetune_trainer.data.store import Split, open_split
from finetune_trainer.model import adapters, sharding
from finetune_trainer.model.base import Precision
from finetune_trainer.reporting import metrics, plots, provenance
from finetune_trainer.reporting.progress import ProgressReport
from finetune_trainer.reporting.trackers.callback import Trackers
from finetune_trainer.run import Outcome, Run
from finetune_trainer.stages import agree, arguments
from finetune_trainer.stages.engine import Engine
from finetune_trainer.stages.evaluation import Evaluation
from finetune_trainer.stages.steps import Steps

log = logging.getLogger(__name__)

PROBES, PROBE_LENGTH = 4, 512
"""Held-out rows, and tokens of each, that a merge is measured on."""


@dataclass(frozen=True)
class Data:
    """What is trained on, and what the model is measured on: the stage's items, as `data.items`."""

    train: Any
    evaluation: dict[str, Any]

    @property
    def probes(self) -> list[list[int]] | None:
        """A few held-out rows, where there are any."""
        for items in self.evaluation.values():
            return [items.split.row(row).input_ids[:PROBE_LENGTH] for row in range(min(PROBES, len(items.split)))]
        return None


@dataclass(frozen=True)
class Training:
    """A trainer, ready to start, and what watches it."""

    trainer: Engine
    steps: Steps
    progress: ProgressReport
    evaluation: Evaluation
    trackers: Trackers
    total_steps: int
    precision: Precision


def open_data(run: Run, items: Callable[[Split], Any]) -> Data:
    """The prepared rows, mapped; ``items`` makes of a split what fills the places of the stage's batches."""
    splits = {name: items(open_split(run.prepared.data, name)) for name in run.prepared.splits}
    return Data(splits.pop("train"), splits)


def set_up(
    run: Run,
    kind: type[Engine],
    model: Any,
    tokens: Any,
    data: Data,
    precision: Precision,
    arguments_kind: type[TrainingArguments] = TrainingArguments,
    arguments_more: dict[str, Any] | None = None,
    **stage: Any,
) -> Training:
    """The stage's trainer with its callbacks; it is made with ``stage`` besides what all of them get."""
    heartbeat.alive()  # the model is loaded, which may have taken most of what loading may
    training = run.job.training
    items = kind.items_per_epoch(data.train, run)
    total_steps = order.total_steps(items, training.global_batch_size, training.epochs, training.max_steps)
    attention = str(model.config.get_text_config()._attn_implementation)
    progress = ProgressReport(run, total_steps)
    evaluation = Evaluation(run, data.evaluation, tokens.pad_token_id, attention, progress.alive)
    saver = Saver(run)
    steps = Steps(run, progress, evaluation, saver)
    trackers = Trackers(run)
    sharded = training.parallelism == "fsdp"
    if sharded:
        if run.world_size == 1:
            sharding.join_alone("nccl" if torch.cuda.is_available() else "gloo")
        sharding.gather_head(model.get_base_model() if isinstance(model, PeftModel) else model)
    settings = arguments.common(run, total_steps, precision) | (arguments_more or {})
    args = arguments_kind(**settings, **(sharding.arguments(model) if sharded else {}))
    if sharded:
        sharding.set_precision(args, precision)
    trainer = kind(
        data=data.train,
        run=run,
        precision=precision,
        saver=saver,
        counters=progress.counters,
        model=model,
        args=args,
        data_collator=data.train.collator(tokens.pad_token_id, attention),
        processing_class=tokens,
        callbacks=[progress, trackers, steps],
        **stage,
    )
    if sharded:
        sharding.check(trainer)
    trainer.remove_callback(PrinterCallback)
    steps.trainer = trainer
    return Training(trainer, steps, progress, evaluation, trackers, total_steps, precision)


def train(run: Run, made: Training) -> None:
    """All steps, from the newest checkpoint of the job's earlier runs if there is one, and the last evaluation."""
    resumed = choose.choose(run)
    made.steps.goes_on_from(resumed)
    heartbeat.alive()
    trained, of = adapters.count(made.trainer.model)
    log.info(
        "%d steps of %d %s (%d ranks x %d x %d), %s of %s weights trained, %s; from %s",
        made.total_steps,
        run.job.training.global_batch_size,
        "rows" if run.job.training.packing in (None, "none") else "packs",
        run.world_size,
        run.micro_batch_size,
        run.accumulation,
        f"{trained:,}",
        f"{of:,}",
        made.precision,
        made.steps.newest or "the start",
    )
    with made.steps.landing():
        made.trainer.train(resume_from_checkpoint=str(resumed.path) if resumed.path else None)
    made.steps.measure_at_end()
    made.steps.take_best()


def finish(
    run: Run,
    made: Training,
    tokens: Any,
    data: Data,
    stop_ids: list[int],
    extra: Callable[[Path], None] | None = None,
    settled: Mapping[str, str] = MappingProxyType({}),
) -> Outcome:
    """Reports and the artifact, by rank 0; the outcome is known to all. ``extra`` adds files to the artifact, in the
    folder that becomes it. ``settled`` is what the stage made of settings that leave it a choice."""
    heartbeat.beat("finish", made.total_steps)
    outcome = None
    model = made.trainer.accelerator.unwrap_model(made.trainer.model)
    weights = artifact.gather(run, model)
    if run.is_main:
        history = made.trainer.state.log_history
        final = metrics.final(
            history,
            made.progress.counters,
            run.prepared.summary,
            run.job.training.global_batch_size,
            made.evaluation.results,
            made.steps.weights_step,
        )
        metrics.write(run.folders.reports, final, made.trainer.state)
        plots.write(run.folders.reports, history)
        made_artifact = artifact.write(
            run,
            model,
            tokens,
            provenance.collect(run, final, made.total_steps, made.precision, settled),
            final,
            weights=weights,
            stop_ids=stop_ids,
            probes=data.probes,
            extra=extra,
        )
        outcome = Outcome(made_artifact, metrics.for_status(final), made.steps.message)
        made.trackers.close()
    return agree.from_main(outcome)  # type: ignore[no-any-return]
