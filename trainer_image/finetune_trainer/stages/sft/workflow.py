"""The whole playbook of stage sft, top to bottom.

Called by the director on every rank. What it calls raises the errors of ``finetune_trainer.errors``; a run that returns
has its artifact in place.
"""

import logging
import time

from transformers import PrinterCallback
from trl.trainer.sft_config import SFTConfig

from finetune_trainer import artifact
from finetune_trainer.checkpoints import find
from finetune_trainer.data import collate, dataset, order
from finetune_trainer.model import adapters, base, tokenizer
from finetune_trainer.reporting import metrics, plots, provenance
from finetune_trainer.reporting.progress import ProgressReport
from finetune_trainer.reporting.quiet import quiet
from finetune_trainer.run import Outcome, Run
from finetune_trainer.stages import agree, arguments
from finetune_trainer.stages.sft.trainer import SftTrainer
from finetune_trainer.stages.steps import Steps, check_stop

log = logging.getLogger(__name__)


def run(run: Run) -> Outcome:
    """Train as the job says, from the newest checkpoint of its earlier runs if there is one."""
    job, training = run.job, run.job.training
    began = time.monotonic()
    quiet()

    # Tokenizer and template
    folder = run.folders.find(job.model.source)
    config = base.check(folder, job.model.source)
    tokens = tokenizer.load(folder)
    template = tokenizer.template(tokens, folder)

    # Data
    data = dataset.load(job.datasets, run.folders, template, training.cutoff_length, lambda: check_stop(run))
    base.check_rows(config, max(data.lengths), data.highest_id)
    total_steps = order.total_steps(len(data.rows), training.global_batch_size, training.epochs, training.max_steps)

    # Model
    precision = base.precision(training)
    model = base.load(folder, job.model.source, adapters.load_dtype(job.tuning.method, precision))
    tuned = adapters.apply(model, job.tuning, training.seed)
    check_stop(run)

    # Trainer
    progress = ProgressReport(run, total_steps)
    steps = Steps(run, progress)
    trainer = SftTrainer(
        lengths=data.lengths,
        global_batch=training.global_batch_size,
        precision=precision,
        model=tuned,
        args=SFTConfig(**arguments.sft(run, total_steps, precision)),
        data_collator=collate.collator(tokens.pad_token_id),
        train_dataset=data.as_dataset(),
        processing_class=tokens,
        callbacks=[steps, progress],
    )
    trainer.remove_callback(PrinterCallback)
    steps.trainer = trainer

    # Train
    resumed = agree.from_main(find.newest(run.folders.checkpoints))
    if resumed:
        steps.goes_on_from(resumed)
    trained, of = adapters.count(trainer.model)
    log.info(
        "%d steps of %d rows (%d ranks x %d x %d), %s of %s weights trained, %s; ready after %.1f s, from %s",
        total_steps,
        training.global_batch_size,
        run.world_size,
        run.micro_batch_size,
        run.accumulation,
        f"{trained:,}",
        f"{of:,}",
        precision,
        time.monotonic() - began,
        steps.newest or "the start",
    )
    trainer.train(resume_from_checkpoint=str(resumed.path) if resumed else None)

    # Save and report
    if run.is_main:
        final = metrics.final(trainer.state.log_history, progress, data, training.global_batch_size)
        metrics.write(run.folders.reports, final, trainer.state)
        plots.write(run.folders.reports, trainer.state.log_history)
        facts = provenance.collect(run, data.digests, final, total_steps, precision)
        made = artifact.write(run, trainer.accelerator.unwrap_model(trainer.model), tokens, facts, final)
        outcome = Outcome(artifact=made, metrics=metrics.for_status(final))
    else:
        outcome = None
    return agree.from_main(outcome)  # type: ignore[no-any-return]
