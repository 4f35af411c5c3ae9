"""The workflow of stage ppo, top to bottom.

The director calls it on every rank, after the job's data and models were prepared. It raises the errors of
``finetune_trainer.errors``. When it returns, the artifact is in its place.
"""

from finetune_trainer.artifact import writer
from finetune_trainer.data.datasets import Prompts
from finetune_trainer.model import base, build, tokenizer, value_head
from finetune_trainer.reporting.library_logs import silence_libraries
from finetune_trainer.run import Run, WorkflowResult
from finetune_trainer.stages.ppo import policy_outputs, reward_models, rewards
from finetune_trainer.stages.ppo.trainer import PpoTrainer
from finetune_trainer.training import logprobs, recipe, reference_model
from finetune_trainer.training.loop import check_stop


def run(run: Run) -> WorkflowResult:
    """Train as the job says. An attempt after the first resumes from the newest checkpoint."""
    job, prepared, settings = run.job, run.prepared, run.job.ppo
    assert settings is not None  # filled in by finetune_api.contract.resolve
    silence_libraries()

    # Tokenizer, with the template that the prompts were made by
    remote_code = base.remote_code(job)
    tokens = tokenizer.load(prepared.model, job.model, job.template.name, allow_remote_code=remote_code)
    stop_ids = tokenizer.stop_ids(tokens, prepared.model, job.template.name)

    # Data: prompts
    data = recipe.open_data(run, Prompts)

    # Policy, with its adapter
    precision, scratch = base.precision(job.training), writer.merge_cache(run)
    policy = build.build(job, prepared.model, prepared.adapter, tokens, precision, scratch, prepared.digests)
    logprobs.add_fused_head(policy, settings.temperature, policy_outputs.HEAD_OUTPUTS)

    # Reference model, before the policy gets a value head
    reference = reference_model.make(run, policy, tokens, settings.temperature)
    value_head.add(policy)

    # Reward model or reward service
    scorer = reward_models.load_scorer(run, tokens, stop_ids)
    check_stop(run)

    # Trainer, evaluation, checkpoints and reports
    training = recipe.set_up(
        run, PpoTrainer, policy, tokens, data, reference=reference, scorer=scorer, stop_ids=stop_ids
    )
    with training.trackers.closed_on_error():
        # Train: rollouts and steps; evaluate and save
        recipe.train(run, training)

        # Reports and the artifact, without the value head
        value_head.remove(training.trainer.model)
        settled = {"rewardNormalization": rewards.normalization_of(settings, scorer.std)}
        outcome = recipe.finish(run, training, tokens, data, stop_ids, settled=settled)
    scorer.drop_cache(training.total_steps)
    return outcome
