"""The workflow of stage dpo, top to bottom.

The director calls it on every rank, after the job's data and models were prepared. It raises the errors of
``finetune_trainer.errors``. When it returns, the artifact is in its place.
"""

from finetune_trainer.artifact import writer
from finetune_trainer.data.datasets import Pairs
from finetune_trainer.model import base, build, tokenizer
from finetune_trainer.reporting.library_logs import silence_libraries
from finetune_trainer.run import Run, WorkflowResult
from finetune_trainer.stages.dpo.precomputed import Precomputed, ScoredPairs
from finetune_trainer.stages.dpo.trainer import DpoTrainer, needs_reference
from finetune_trainer.training import recipe, reference_model
from finetune_trainer.training.loop import check_stop


def run(run: Run) -> WorkflowResult:
    """Train as the job says. An attempt after the first resumes from the newest checkpoint."""
    job, prepared, settings = run.job, run.prepared, run.job.dpo
    assert settings is not None  # filled in by finetune_api.contract.resolve
    silence_libraries()

    # Tokenizer, with the template that the rows were made by
    remote_code = base.remote_code(job)
    tokens = tokenizer.load(prepared.model, job.model, job.template.name, allow_remote_code=remote_code)
    stop_ids = tokenizer.stop_ids(tokens, prepared.model, job.template.name)

    # Data: pairs of rows, the chosen and the rejected answer, maybe with the log-probabilities of the reference
    data: recipe.Data[Pairs] = recipe.open_data(run, Pairs)
    precomputed = None
    if settings.precompute_reference:
        data = scored = recipe.open_data(run, ScoredPairs)
        precomputed = Precomputed(run, scored)

    # Model, with its adapter
    precision, scratch = base.precision(job.training), writer.merge_cache(run)
    model = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    check_stop(run)

    # Reference model, unless the loss has none or an earlier attempt computed all of its log-probabilities
    reference = None
    if needs_reference(settings) and not (precomputed and precomputed.is_complete):
        reference = reference_model.make(run, model, tokens)
    check_stop(run)

    # Trainer, evaluation, checkpoints and reports
    training = recipe.set_up(
        run, DpoTrainer, model, tokens, data, settings=settings, reference=reference, precomputed=precomputed
    )
    with training.trackers.closed_on_error():
        # Train, evaluate and save
        recipe.train(run, training)

        # Reports and the artifact
        return recipe.finish(run, training, tokens, data, stop_ids)
