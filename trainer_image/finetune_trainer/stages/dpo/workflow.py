"""The whole playbook of stage dpo, top to bottom.

Called by the director on every rank, after everything was prepared. What it calls raises the errors of
``finetune_trainer.errors``; a run that returns has its artifact in place.
"""

from finetune_trainer import artifact
from finetune_trainer.data.pairs import Pairs
from finetune_trainer.model import base, build, tokenizer
from finetune_trainer.reporting.quiet import quiet
from finetune_trainer.run import Outcome, Run
from finetune_trainer.stages import playbook, reference
from finetune_trainer.stages.dpo.precomputed import Precomputed, ScoredPairs
from finetune_trainer.stages.dpo.trainer import NO_REFERENCE, DpoTrainer
from finetune_trainer.stages.steps import check_stop


def run(run: Run) -> Outcome:
    """Train as the job says, from the newest checkpoint of its earlier runs if there is one."""
    job, prepared, settings = run.job, run.prepared, run.job.dpo
    assert settings is not None  # filled in by finetune_api.contract.resolve
    quiet()

    # Tokenizer, with the template that the rows were made by
    remote_code = base.remote_code(job)
    tokens = tokenizer.load(prepared.model, job.model, job.template.name, allow_remote_code=remote_code)
    stop_ids = tokenizer.stop_ids(tokens, prepared.model, job.template.name)

    # Data
    data = playbook.open_data(run, ScoredPairs if settings.precompute_reference else Pairs)

    # Model
    precision = base.precision(job.training)
    scratch = artifact.scratch(run)
    model = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    check_stop(run)

    # Reference
    precomputed, compared = None, settings.loss not in NO_REFERENCE
    if settings.precompute_reference:
        splits = {"train": data.train, **data.evaluation}
        precomputed = Precomputed(run, splits, tokens.pad_token_id)
        compared = not precomputed.known
    compare_with = reference.make(run, model, tokens) if compared else None
    check_stop(run)

    # Train, evaluate, save and report
    training = playbook.set_up(
        run,
        DpoTrainer,
        model,
        tokens,
        data,
        precision,
        settings=settings,
        reference=compare_with,
        precomputed=precomputed,
    )
    with training.trackers.unless_stopped():
        playbook.train(run, training)
        return playbook.finish(run, training, tokens, data, stop_ids)
