"""The workflow of stage pt, top to bottom: as sft, but documents have no template and every token is trained.

The director calls it on every rank, after the job's data and models were prepared. It raises the errors of
``finetune_trainer.errors``. When it returns, the artifact is in its place.
"""

from functools import partial

from finetune_trainer.artifact import writer
from finetune_trainer.data.datasets import TokenSequences
from finetune_trainer.model import base, build, tokenizer
from finetune_trainer.reporting.library_logs import silence_libraries
from finetune_trainer.run import Run, WorkflowResult
from finetune_trainer.stages.sft.trainer import SftTrainer
from finetune_trainer.training import recipe
from finetune_trainer.training.loop import check_stop


def run(run: Run) -> WorkflowResult:
    """Train as the job says. An attempt after the first resumes from the newest checkpoint."""
    job, prepared = run.job, run.prepared
    silence_libraries()

    # Tokenizer. Its stop tokens are the base model's: documents end with its end token
    tokens = tokenizer.load(prepared.model, job.model, allow_remote_code=base.remote_code(job))
    stop_ids = tokenizer.stop_ids(tokens, prepared.model, None)

    # Data: a row per sample, or a pack of rows
    data = recipe.open_data(run, partial(TokenSequences, packing=job.training.packing or "none"))

    # Model, with its adapter
    precision, scratch = base.precision(job.training), writer.merge_cache(run)
    model = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    check_stop(run)

    # Trainer, evaluation, checkpoints and reports
    training = recipe.set_up(run, SftTrainer, model, tokens, data)
    with training.trackers.closed_on_error():
        # Train, evaluate and save
        recipe.train(run, training)

        # Reports and the artifact
        return recipe.finish(run, training, tokens, data, stop_ids)
