"""PPO as a trainer: before every few steps the policy answers prompts, and each step learns from a part of the answers.

Step s learns from rollout s // steps_per_rollout (`rollout.Schedule`). Before the first step of a rollout, `collector`
generates and scores its answers. A loss is a sum over tokens, divided by the tokens of the global batch. So results
depend neither on the number of ranks nor on the micro-batch, and a run resumes at any step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetune_trainer.data.collate import Batch
from finetune_trainer.data.datasets import Dataset, Prompts
from finetune_trainer.run import Run
from finetune_trainer.runtime import heartbeat
from finetune_trainer.stages.ppo import policy_outputs
from finetune_trainer.stages.ppo.collector import RolloutCollector
from finetune_trainer.stages.ppo.losses import policy_losses, value_losses
from finetune_trainer.stages.ppo.reward_models import Scorer
from finetune_trainer.stages.ppo.rewards import RewardNormalizer, kl_controller
from finetune_trainer.stages.ppo.rollout import PpoState, Rollout, Schedule, micro_batches
from finetune_trainer.stages.ppo.samples import SampleTable
from finetune_trainer.training.reference_model import Reference
from finetune_trainer.training.trainer import BaseTrainer, EvaluationValues

EVALUATION_METRICS = ("reward", "reward_normalized", "answer_length", "eos_rate")


class PpoTrainer(BaseTrainer):
    """See the module."""

    def __init__(
        self,
        *,
        data: Prompts,
        run: Run,
        processing_class: PreTrainedTokenizerBase,
        reference: Reference,
        scorer: Scorer,
        stop_ids: Sequence[int],
        **kwargs: Any,
    ) -> None:
        assert run.job.ppo is not None
        self.settings, self.scorer, self.stop_ids = run.job.ppo, scorer, list(stop_ids)
        self.pad_id: int = processing_class.pad_token_id
        self.schedule = schedule_of(run, len(data))
        normalizer = RewardNormalizer(self.settings, scorer.mean, scorer.std, scorer.ignores_stop_token)
        self.ppo_state = PpoState(kl_controller(self.settings), normalizer)
        self.samples = SampleTable(run, processing_class)
        super().__init__(data=data, run=run, processing_class=processing_class, stage_state=self.ppo_state, **kwargs)
        policy_outputs.disable_dropout(self.model)
        reference.place(self)
        scorer.place(self.args.device, None if self.is_fsdp_enabled else self.model)
        self.collector = RolloutCollector(
            trainer=self,
            prompts=data,
            settings=self.settings,
            schedule=self.schedule,
            state=self.ppo_state,
            reference=reference,
            scorer=scorer,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
            tokens=len(processing_class),
        )
        self.saver.on_saved.append(lambda saved: scorer.drop_cache(saved.step))

    # Batches of a step

    @classmethod
    def samples_per_epoch(cls, data: Dataset, run: Run) -> int:
        return schedule_of(run, len(data)).samples_per_pass

    def step_batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step from its rollout."""
        rollout, run = self._rollout(step), self.run
        shares = micro_batches(
            self.schedule.minibatch(step), rollout.lengths, run.micro_batch, run.rank, run.world_size
        )
        return [rollout.batch(rows) for rows in shares]

    def _rollout(self, step: int) -> Rollout:
        """The rollout that a step learns from: the current rollout, or the next. Raises StopRequested."""
        number, rollout = self.schedule.rollout(step), self.ppo_state.rollout
        if rollout is None or rollout.number != number:
            rollout = self.ppo_state.rollout = self.collector.collect(number, step)
            heartbeat.beat("train", step)
        for name, value in rollout.metrics.items():
            self.metric_sums.add_global(name, value)
        return rollout

    # Loss

    def micro_batch_loss(self, model: nn.Module, batch: Batch, denominator: torch.Tensor) -> torch.Tensor:
        """Policy loss + valueCoefficient x value loss (Schulman et al., 2017, eq. 9): sums over tokens, divided by the
        tokens of the global batch. There is no entropy bonus: the rewards have a penalty on divergence."""
        settings, outputs = self.settings, policy_outputs.forward(model, batch)
        assert outputs.values is not None
        policy, clipped = policy_losses(outputs.log_probs, batch["log_probs"], batch["advantages"], settings.clip_range)
        value = value_losses(outputs.values, batch["values"], batch["returns"], settings.value_clip_range)
        tokens = len(policy)
        self.add_metrics(
            policy_loss=(policy.sum(), tokens), value_loss=(value.sum(), tokens), clip_fraction=(clipped.sum(), tokens)
        )
        if outputs.entropy is not None:
            self.add_metrics(entropy=(outputs.entropy.sum(), tokens))
        total = policy.sum() + settings.value_coefficient * value.sum()
        loss: torch.Tensor = total / denominator
        return loss

    # Evaluation

    def evaluation_step(self, model: nn.Module, batch: Batch) -> Batch:
        """Greedy answers to held-out prompts, each value [rows]: raw and normalized reward, length, and whether the
        answer has an end."""
        prompts = [ids.tolist() for ids in batch["input_ids"][0].split(batch["lengths"])]
        answers = self.collector.generate(model, prompts, len(prompts))
        scores = self.scorer.score([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
        self.samples.add(prompts, answers, scores)
        lengths = np.array([len(answer) for answer in answers])
        has_end = np.array([answer[-1] in self.stop_ids for answer in answers])
        normalizer = self.ppo_state.normalizer
        values = {
            "reward": np.array(scores),
            "reward_normalized": normalizer.evaluation_rewards(np.array(scores), has_end, has_end & (lengths == 1)),
            "answer_length": lengths,
            "eos_rate": has_end,
        }
        return {name: torch.from_numpy(value.astype(np.float64)) for name, value in values.items()}

    def evaluation_metrics(self, values: EvaluationValues) -> dict[str, float]:
        """The loss is minus the normalized reward: the best checkpoint has the lowest."""
        means = {name: float(values[name].mean()) for name in EVALUATION_METRICS}
        return {"loss": -means["reward_normalized"], **means}

    def after_evaluation(self) -> None:
        self.samples.write(self.state.global_step)


def schedule_of(run: Run, prompt_count: int) -> Schedule:
    """The schedule of the job on so many prompts."""
    training, settings = run.job.training, run.job.ppo
    assert settings is not None
    return Schedule(
        prompt_count=prompt_count,
        rollout_batch=settings.rollout_batch_size or training.global_batch_size,
        global_batch=training.global_batch_size,
        epochs=settings.epochs,
        seed=training.seed,
    )
