"""The steps that the workflows of all stages share, from prepared rows to the artifact.

Workflows call them in the order of this file, on every rank:

    open_data   the prepared splits, as the stage's dataset
    set_up      the stage's trainer with its arguments, evaluation, checkpoints, progress report and trackers
    train       resume from the newest checkpoint, train, evaluate the last step, load the best weights
    finish      reports and the artifact

`train` runs the loop of transformers' Trainer. One optimizer step makes these calls, in this order:

    trainer.BaseTrainer.get_batch_samples   micro-batches from `data.order`, `data.micro_batches` and the dataset;
                                            the denominators of the loss, summed over all ranks
    loop.Training.begin_step                seeds
    <stage>.trainer.micro_batch_loss        per micro-batch, with the backward pass of transformers after it
    (transformers)                          gradients are clipped, optimizer and scheduler step
    loop.Training.end_step                  ranks agree; `divergence`, `checkpointing`; counters, progress
    trainer.BaseTrainer.log                 if due: `metric_sums` to log, progress report and trackers
    loop.Training.evaluate                  if due: `evaluation`, then `early_stopping`
    trainer.BaseTrainer._save_checkpoint    if due: files, then `checkpoints.saver` in the background
    loop.Training.end_save                  after SIGTERM: the run ends here
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments

from finetune_trainer import collectives
from finetune_trainer.artifact import provenance, writer
from finetune_trainer.checkpoints import resume
from finetune_trainer.checkpoints.saver import Saver
from finetune_trainer.data import order
from finetune_trainer.data.datasets import Dataset
from finetune_trainer.data.splits import Split, open_split
from finetune_trainer.errors import NothingToKeep
from finetune_trainer.model import base, sharding, trainable
from finetune_trainer.model.base import Precision
from finetune_trainer.prepare.footprint import Recomputation
from finetune_trainer.reporting import metrics, plots
from finetune_trainer.reporting.progress import ProgressReport
from finetune_trainer.reporting.trackers.callback import Trackers
from finetune_trainer.run import Run, WorkflowResult
from finetune_trainer.runtime import heartbeat
from finetune_trainer.training import arguments, recomputation
from finetune_trainer.training.evaluation import Evaluation
from finetune_trainer.training.loop import Training
from finetune_trainer.training.trainer import BaseTrainer, Model

log = logging.getLogger(__name__)

PROBES, PROBE_LENGTH = 4, 512
"""Held-out rows, and tokens of each, that a merge is measured on."""

D = TypeVar("D", bound=Dataset)
D_co = TypeVar("D_co", bound=Dataset, covariant=True)


@dataclass(frozen=True)
class Data(Generic[D_co]):
    """The training split, and the evaluation splits by name."""

    train: D_co
    evaluation: Mapping[str, D_co]

    @property
    def probes(self) -> list[list[int]] | None:
        """[rows][tokens]: a few held-out rows. None if no rows are held out."""
        for dataset in self.evaluation.values():
            rows = range(min(PROBES, len(dataset.split)))
            return [dataset.split.row(row).input_ids[:PROBE_LENGTH] for row in rows]
        return None


def open_data(run: Run, dataset: Callable[[Split], D]) -> Data[D]:
    """The prepared splits, memory-mapped; ``dataset`` makes the stage's dataset of a split."""
    splits = {name: dataset(open_split(run.prepared.data, name)) for name in run.prepared.splits}
    return Data(splits.pop("train"), splits)


def set_up(
    run: Run,
    kind: type[BaseTrainer],
    model: Model,
    tokens: PreTrainedTokenizerBase,
    data: Data[D],
    **stage: Any,
) -> Training:
    """A training that is ready to start. ``kind``: the stage's trainer; it gets ``stage`` as further arguments."""
    heartbeat.refresh()  # the model is loaded, which may take almost as long as a hang is allowed to
    spec, precision = run.job.training, base.precision(run.job.training)
    samples = kind.samples_per_epoch(data.train, run)
    total_steps = order.total_steps(samples, spec.global_batch_size, spec.epochs, spec.max_steps)
    recompute = recomputation.decide(run, model)
    progress, trackers = ProgressReport(run, total_steps, str(recompute)), Trackers(run)
    trainer = kind(
        data=data.train,
        run=run,
        precision=precision,
        saver=Saver(run),
        progress=progress,
        model=model,
        args=_arguments(run, model, total_steps, precision, recompute),
        data_collator=data.train.batch,
        processing_class=tokens,
        callbacks=[progress, trackers],
        **stage,
    )
    if spec.parallelism == "fsdp":
        sharding.check_enabled(trainer)
    trainer.remove_callback(PrinterCallback)
    evaluation = Evaluation(run, data.evaluation, progress.refresh)
    return Training(run, trainer, evaluation, trackers, recompute)


def _arguments(
    run: Run, model: Model, total_steps: int, precision: Precision, recompute: Recomputation
) -> TrainingArguments:
    """The arguments of the trainer. With FSDP, the model gets the hook that gathers its head."""
    settings = arguments.common(run, total_steps, precision, recompute=recompute.recomputed > 0)
    if run.job.training.parallelism != "fsdp":
        return TrainingArguments(**settings)
    if run.world_size == 1:
        sharding.init_single_process_group("nccl" if torch.cuda.is_available() else "gloo")
    sharding.unshard_head_after_backbone(model.get_base_model() if isinstance(model, PeftModel) else model)
    args = TrainingArguments(**settings, **sharding.training_arguments(model))
    sharding.set_precision(args, precision)
    return args


def train(run: Run, training: Training) -> None:
    """All steps, from the newest checkpoint of the job's earlier runs or the start. Then the model has the weights
    that become the artifact, and their evaluation is complete."""
    checkpoint = resume.find_resume_point(run)
    if run.keeps and checkpoint.path is None:
        raise NothingToKeep(
            f"jobs/{run.job.name} in the workspace has no intact checkpoint, so there is nothing to make the artifact"
            " of. Delete the job; or create it again without spec.stop"
        )
    training.checkpointing.resume_from(checkpoint)
    heartbeat.refresh()
    trained_weights, all_weights = trainable.count_weights(training.trainer.model)
    log.info(
        "%d steps of %d %s (ranks: %d, micro-batch: %s), %s of %s weights trained, %s; from %s",
        training.total_steps,
        run.job.training.global_batch_size,
        "rows" if run.job.training.packing in (None, "none") else "packs",
        run.world_size,
        run.micro_batch,
        f"{trained_weights:,}",
        f"{all_weights:,}",
        training.trainer.precision,
        training.checkpointing.newest or "the start",
    )
    try:
        training.train(checkpoint)
        training.evaluate_last()
        training.load_best()
    finally:
        training.progress.close()


def finish(
    run: Run,
    training: Training,
    tokens: PreTrainedTokenizerBase,
    data: Data[D],
    stop_ids: list[int],
    extra: Callable[[Path], None] | None = None,
    settled: Mapping[str, str] = MappingProxyType({}),
) -> WorkflowResult:
    """Rank 0 writes the reports and the artifact; all ranks get the outcome. ``extra`` adds files to the directory that
    becomes the artifact. ``settled``: values that the stage chose for settings that leave a choice."""
    heartbeat.beat("finish", training.total_steps)
    outcome: WorkflowResult | None = None
    trainer = training.trainer
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = writer.gather_weights(run, model)
    if run.is_main:
        history = trainer.state.log_history
        final = metrics.final(
            history,
            training.progress.counters,
            run.prepared.summary,
            run.job.training.global_batch_size,
            training.evaluation.metrics,
            training.weights_step,
            trainer.state.global_step,
        )
        metrics.write(run.folders.reports, final, trainer.state)
        plots.write(run.folders.reports, history)
        artifact = writer.write(
            run,
            model,
            tokens,
            provenance.collect(run, final, training.total_steps, trainer.precision, str(training.recompute), settled),
            final,
            weights=weights,
            stop_ids=stop_ids,
            probes=data.probes,
            extra=extra,
        )
        outcome = WorkflowResult(artifact, metrics.for_status(final), training.message, training.reason)
        training.trackers.close()
    return collectives.broadcast(outcome)  # type: ignore[no-any-return]
