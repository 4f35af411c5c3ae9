"""The whole playbook of stage kto, top to bottom.

Called by the director on every rank, after everything was prepared. What it calls raises the errors of
``finetune_trainer.errors``; a run that returns has its artifact in place.
"""

from functools import partial

from finetune_trainer import artifact
from finetune_trainer.data.labelled import Labelled
from finetune_trainer.model import base, build, tokenizer
from finetune_trainer.reporting.quiet import quiet
from finetune_trainer.run import Outcome, Run
from finetune_trainer.stages import playbook, reference
from finetune_trainer.stages.kto.trainer import KtoTrainer
from finetune_trainer.stages.steps import check_stop


def run(run: Run) -> Outcome:
    """Train as the job says, from the newest checkpoint of its earlier runs if there is one."""
    job, prepared, settings = run.job, run.prepared, run.job.kto
    assert settings is not None  # filled in by finetune_api.contract.resolve
    quiet()

    # Tokenizer, with the template that the rows were made by
    remote_code = base.remote_code(job)
    tokens = tokenizer.load(prepared.model, job.model, job.template.name, allow_remote_code=remote_code)
    stop_ids = tokenizer.stop_ids(tokens, prepared.model, job.template.name)

    # Data
    data = playbook.open_data(run, partial(Labelled, cutoff=job.training.cutoff_length))

    # Model
    precision = base.precision(job.training)
    scratch = artifact.scratch(run)
    model = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    check_stop(run)

    # Reference
    compare_with = reference.make(run, model, tokens)
    check_stop(run)

    # Train, evaluate, save and report
    training = playbook.set_up(
        run, KtoTrainer, model, tokens, data, precision, settings=settings, reference=compare_with
    )
    with training.trackers.unless_stopped():
        playbook.train(run, training)
        return playbook.finish(run, training, tokens, data, stop_ids)
