"""The whole playbook of stage sft, top to bottom.

Called by the director on every rank, after everything was prepared. What it calls raises the errors of
``finetune_trainer.errors``; a run that returns has its artifact in place.
"""

from functools import partial

from trl.trainer.sft_config import SFTConfig

from finetune_trainer import artifact
from finetune_trainer.data.items import Items
from finetune_trainer.evaluation import held_out
from finetune_trainer.model import base, build, tokenizer
from finetune_trainer.reporting.quiet import quiet
from finetune_trainer.run import Outcome, Run
from finetune_trainer.stages import playbook
from finetune_trainer.stages.arguments import SFT
from finetune_trainer.stages.sft.trainer import SftTrainer
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
    data = playbook.open_data(run, partial(Items, packing=job.training.packing or "none"))

    # Model
    precision = base.precision(job.training)
    scratch = artifact.scratch(run)
    model = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    check_stop(run)

    # Train, evaluate, save and report
    training = playbook.set_up(run, SftTrainer, model, tokens, data, precision, SFTConfig, SFT)
    with training.trackers.unless_stopped():
        playbook.train(run, training)
        training.steps.answer_at_end(
            lambda: held_out.sft_metrics(run, training.trainer, tokens, data.evaluation, stop_ids)
        )
        return playbook.finish(run, training, tokens, data, stop_ids)
