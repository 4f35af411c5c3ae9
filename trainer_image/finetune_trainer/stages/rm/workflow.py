"""The whole playbook of stage rm, top to bottom.

Called by the director on every rank, after everything was prepared. What it calls raises the errors of
``finetune_trainer.errors``; a run that returns has its artifact in place.
"""

from finetune_trainer import artifact
from finetune_trainer.data.pairs import Pairs
from finetune_trainer.model import base, build, tokenizer
from finetune_trainer.reporting.quiet import quiet
from finetune_trainer.run import Outcome, Run
from finetune_trainer.stages import playbook
from finetune_trainer.stages.rm import scores
from finetune_trainer.stages.rm.trainer import RmTrainer
from finetune_trainer.stages.steps import check_stop


def run(run: Run) -> Outcome:
    """Train as the job says, from the newest checkpoint of its earlier runs if there is one."""
    job, prepared = run.job, run.prepared
    quiet()
    assert job.rm is not None  # filled in by finetune_api.contract.resolve

    # Tokenizer, with the template that the rows were made by
    remote_code = base.remote_code(job)
    tokens = tokenizer.load(prepared.model, job.model, job.template.name, allow_remote_code=remote_code)

    # Data: pairs of rows
    data = playbook.open_data(run, Pairs)

    # Model, with a head that scores
    precision = base.precision(job.training)
    scratch = artifact.scratch(run)
    model = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    check_stop(run)

    # Train and evaluate
    training = playbook.set_up(run, RmTrainer, model, tokens, data, precision, center=job.rm.center_rewards)
    with training.trackers.unless_stopped():
        playbook.train(run, training)

        # Score, save and report
        said = scores.of(run, training, data)
        if run.is_main:
            said.write_rows(run.folders.reports)
        return playbook.finish(run, training, tokens, data, [], said.write_statistics)
