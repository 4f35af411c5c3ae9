"""The steps that stages sft and pt share: both train a causal language model to predict tokens of prepared rows.

Called by their workflows, in the order of this file, on every rank.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback
from trl.trainer.sft_config import SFTConfig

from finetune_trainer import artifact, heartbeat
from finetune_trainer.checkpoints import choose
from finetune_trainer.checkpoints.saver import Saver
from finetune_trainer.data import order
from finetune_trainer.data.items import Items
from finetune_trainer.data.store import open_split
from finetune_trainer.model import adapters, sharding
from finetune_trainer.model.base import Precision
from finetune_trainer.reporting import metrics, plots, provenance
from finetune_trainer.reporting.progress import ProgressReport
from finetune_trainer.run import Outcome, Run
from finetune_trainer.stages import agree, arguments
from finetune_trainer.stages.evaluation import Evaluation
from finetune_trainer.stages.sft.trainer import SftTrainer
from finetune_trainer.stages.steps import Steps

log = logging.getLogger(__name__)

PROBES, PROBE_LENGTH = 4, 512
"""Held-out rows, and tokens of each, that a merge is measured on."""


@dataclass(frozen=True)
class Data:
    """What is trained on, and what the model is measured on."""

    train: Items
    evaluation: dict[str, Items]

    @property
    def probes(self) -> list[list[int]] | None:
        """A few held-out rows, where there are any."""
        for items in self.evaluation.values():
            return [items.split.row(row).input_ids[:PROBE_LENGTH] for row in range(min(PROBES, len(items.split)))]
        return None


@dataclass(frozen=True)
class Training:
    """A trainer, ready to start, and what watches it."""

    trainer: SftTrainer
    steps: Steps
    progress: ProgressReport
    evaluation: Evaluation
    total_steps: int
    precision: Precision


def open_data(run: Run) -> Data:
    """The prepared rows, mapped."""
    packing = run.job.training.packing or "none"
    splits = {name: Items(open_split(run.prepared.data, name), packing) for name in run.prepared.splits}
    return Data(splits.pop("train"), splits)


def set_up(run: Run, model: Any, tokens: Any, data: Data, precision: Precision) -> Training:
    """The trainer with its callbacks."""
    heartbeat.alive()  # the model is loaded, which may have taken most of what loading may
    from datasets import Dataset

    training, lora = run.job.training, run.job.tuning.lora
    total_steps = order.total_steps(len(data.train), training.global_batch_size, training.epochs, training.max_steps)
    attention = str(model.config.get_text_config()._attn_implementation)
    progress = ProgressReport(run, total_steps)
    evaluation = Evaluation(run, data.evaluation, tokens.pad_token_id, attention, progress.alive)
    saver = Saver(run)
    steps = Steps(run, progress, evaluation, saver)
    collate = data.train.collator(tokens.pad_token_id, attention)
    sharded = training.parallelism == "fsdp"
    if sharded:
        if run.world_size == 1:
            sharding.join_alone("nccl" if torch.cuda.is_available() else "gloo")
        sharding.gather_head(model.get_base_model() if isinstance(model, PeftModel) else model)
    args = SFTConfig(**arguments.sft(run, total_steps, precision), **(sharding.arguments(model) if sharded else {}))
    if sharded:
        sharding.set_precision(args, precision)
    trainer = SftTrainer(
        lengths=data.train.lengths,
        global_batch=training.global_batch_size,
        precision=precision,
        saver=saver,
        counters=progress.counters,
        group_by_length=training.group_by_length,
        lora_plus_ratio=lora.lora_plus_ratio if lora else None,
        model=model,
        args=args,
        data_collator=lambda numbers: collate([number["item"] for number in numbers]),
        # TRL wants a data set: it gets the items' numbers, and the collator reads what they stand for.
        train_dataset=Dataset.from_dict({"item": range(len(data.train))}),
        processing_class=tokens,
        callbacks=[steps, progress],
    )
    if sharded:
        sharding.check(trainer)
    trainer.remove_callback(PrinterCallback)
    steps.trainer = trainer
    return Training(trainer, steps, progress, evaluation, total_steps, precision)


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
        "rows" if run.job.training.packing == "none" else "packs",
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


def finish(run: Run, made: Training, tokens: Any, data: Data, stop_ids: list[int]) -> Outcome:
    """Reports and the artifact, by rank 0; the outcome is known to all."""
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
        )
        metrics.write(run.folders.reports, final, made.trainer.state)
        plots.write(run.folders.reports, history)
        made_artifact = artifact.write(
            run,
            model,
            tokens,
            provenance.collect(run, final, made.total_steps, made.precision),
            final,
            weights=weights,
            stop_ids=stop_ids,
            probes=data.probes,
        )
        outcome = Outcome(artifact=made_artifact, metrics=metrics.for_status(final))
    return agree.from_main(outcome)  # type: ignore[no-any-return]
