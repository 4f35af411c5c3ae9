"""The whole playbook of stage ppo, top to bottom.

Called by the director on every rank, after everything was prepared. What it calls raises the errors of
``finetune_trainer.errors``; a run that returns has its artifact in place.
"""

from finetune_trainer import artifact
from finetune_trainer.model import base, build, tokenizer, value_head
from finetune_trainer.reporting.quiet import quiet
from finetune_trainer.run import Outcome, Run
from finetune_trainer.stages import logprobs, playbook, reference
from finetune_trainer.stages.ppo import heads, reward, rewards
from finetune_trainer.stages.ppo.questions import Questions
from finetune_trainer.stages.ppo.trainer import PpoTrainer
from finetune_trainer.stages.steps import check_stop


def run(run: Run) -> Outcome:
    """Train as the job says, from the newest checkpoint of its earlier runs if there is one."""
    job, prepared = run.job, run.prepared
    assert job.ppo is not None
    quiet()

    # Tokenizer, with the template that the prompts were made by
    remote_code = base.remote_code(job)
    tokens = tokenizer.load(prepared.model, job.model, job.template.name, allow_remote_code=remote_code)
    stop_ids = tokenizer.stop_ids(tokens, prepared.model, job.template.name)

    # Data
    data = playbook.open_data(run, Questions)

    # Policy, the reference that it is held to, and its critic
    precision = base.precision(job.training)
    scratch = artifact.scratch(run)
    model = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    logprobs.add(model, job.ppo.temperature, heads.OUTPUTS)
    compared = reference.make(run, model, tokens, job.ppo.temperature)
    value_head.add(model)

    # Reward
    scorer = reward.make(run, tokens, stop_ids)
    check_stop(run)

    # Train, evaluate, save and report
    training = playbook.set_up(
        run,
        PpoTrainer,
        model,
        tokens,
        data,
        precision,
        reference=compared,
        scorer=scorer,
        stop_ids=stop_ids,
    )
    with training.trackers.unless_stopped():
        playbook.train(run, training)
        value_head.remove(training.trainer.model)
        settled = {"rewardNormalization": rewards.normalization(job.ppo, scorer.std)}
        outcome = playbook.finish(run, training, tokens, data, stop_ids, settled=settled)
    scorer.forget(training.total_steps)
    return outcome
