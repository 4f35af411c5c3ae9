"""The whole playbook of stage sft, top to bottom.

Called by the director on every rank, after everything was prepared. What it calls raises the errors of
``finetune_trainer.errors``; a run that returns has its artifact in place.
"""

from finetune_trainer import artifact
from finetune_trainer.model import base, build, tokenizer
from finetune_trainer.reporting.quiet import quiet
from finetune_trainer.run import Outcome, Run
from finetune_trainer.stages import causal
from finetune_trainer.stages.steps import check_stop


def run(run: Run) -> Outcome:
    """Train as the job says, from the newest checkpoint of its earlier runs if there is one."""
    job, prepared = run.job, run.prepared
    quiet()

    # Tokenizer, with the template that the rows were made by
    remote_code = base.remote_code(job)
    tokens = tokenizer.load(prepared.model, job.model, job.template.name, allow_remote_code=remote_code)
    stop_ids = tokenizer.stop_ids(tokens, prepared.model, job.template.name)

    # Data
    data = causal.open_data(run)

    # Model
    precision = base.precision(job.training)
    scratch = artifact.scratch(run)
    model = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    check_stop(run)

    # Train, evaluate, save and report
    training = causal.set_up(run, model, tokens, data, precision)
    causal.train(run, training)
    return causal.finish(run, training, tokens, data, stop_ids)
