"""The workflow of stage rm, top to bottom.

The director calls it on every rank, after the job's data and models were prepared. It raises the errors of
``finetune_trainer.errors``. When it returns, the artifact is in its place.
"""

from finetune_trainer.artifact import writer
from finetune_trainer.data.datasets import Pairs
from finetune_trainer.model import base, build, tokenizer
from finetune_trainer.reporting.library_logs import silence_libraries
from finetune_trainer.run import Run, WorkflowResult
from finetune_trainer.stages.rm import scores
from finetune_trainer.stages.rm.trainer import RmTrainer
from finetune_trainer.training import recipe
from finetune_trainer.training.loop import check_stop


def run(run: Run) -> WorkflowResult:
    """Train as the job says. An attempt after the first resumes from the newest checkpoint."""
    job, prepared = run.job, run.prepared
    assert job.rm is not None  # filled in by finetune_api.contract.resolve
    silence_libraries()

    # Tokenizer, with the template that the rows were made by
    remote_code = base.remote_code(job)
    tokens = tokenizer.load(prepared.model, job.model, job.template.name, allow_remote_code=remote_code)

    # Data: pairs of rows, the chosen and the rejected answer
    data = recipe.open_data(run, Pairs)

    # Model, with its adapter and a head that scores
    precision, scratch = base.precision(job.training), writer.merge_cache(run)
    model = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    check_stop(run)

    # Trainer, evaluation, checkpoints and reports
    training = recipe.set_up(run, RmTrainer, model, tokens, data, center=job.rm.center_rewards)
    with training.trackers.closed_on_error():
        # Train, evaluate and save
        recipe.train(run, training)

        # Scores of held-out pairs, whose mean and deviation stage ppo needs
        held_out = scores.compute(run, training, data)
        if run.is_main:
            held_out.write_rows(run.folders.reports)

        # Reports and the artifact
        return recipe.finish(run, training, tokens, data, [], held_out.write_statistics)
