"""Collecting a rollout, top to bottom: generate, score, forward passes, rewards, advantages.

The trainer calls it before the first step of each rollout, on every rank. Each rank generates a share of the answers.
Then ranks exchange their experience, and each computes the same rollout from all of it, so the rollout depends neither
on ranks nor on micro-batches.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.stages import PpoSpec
from torch import nn

from finetune_trainer import collectives
from finetune_trainer.data.datasets import Prompts
from finetune_trainer.data.micro_batches import by_tokens, deal
from finetune_trainer.generation import batched
from finetune_trainer.model import sharding
from finetune_trainer.run import Run
from finetune_trainer.runtime import heartbeat
from finetune_trainer.stages.ppo import policy_outputs, rewards, sampling
from finetune_trainer.stages.ppo.losses import gae, whiten
from finetune_trainer.stages.ppo.reward_models import Scorer
from finetune_trainer.stages.ppo.rollout import (
    PpoState,
    Rollout,
    Schedule,
    Singles,
    answer_batch,
    mask_of,
    micro_batches,
    padded,
)
from finetune_trainer.training.reference_model import Reference
from finetune_trainer.training.trainer import BaseTrainer, StopRequested

ROLLOUT_MICRO_BATCHES = 4
"""Micro-batches of training that generate together, if the job does not set rolloutMicroBatchSize."""

ForwardPass = tuple[Singles, Singles, Singles]
"""Log-probabilities, values and log-probabilities of the reference: [tokens] of one answer each."""


@dataclass(frozen=True)
class Experience:
    """One answer, on the rank that generated it."""

    row: int
    prompt: list[int]
    answer: list[int]
    score: float
    log_probs: Singles
    """[tokens of the answer], as are the next two."""
    values: Singles
    ref_log_probs: Singles


@dataclass
class RolloutCollector:
    """See the module."""

    trainer: BaseTrainer
    prompts: Prompts
    settings: PpoSpec
    schedule: Schedule
    state: PpoState
    reference: Reference
    scorer: Scorer
    stop_ids: list[int]
    pad_id: int
    tokens: int
    """Size of the tokenizer."""

    def collect(self, number: int, step: int) -> Rollout:
        """The rollout of this number, whose first step is ``step``. Called by all ranks. Raises StopRequested."""
        heartbeat.beat("generate", step, use=heartbeat.use_of_step(step))
        prompts = {row: self.prompts.prompt(index) for row, index in enumerate(self.schedule.prompts(number))}
        answers = self._sample(number, prompts)
        scores = self.scorer.score_rollout(step, {row: prompts[row] + answer for row, answer in answers.items()})
        local = [
            Experience(row, prompts[row], answers[row], scores[row], *outputs)
            for row, outputs in self._forward_passes(prompts, answers)
        ]
        everything = [experience for rank in collectives.all_gather_objects(local) for experience in rank]
        return make_rollout(number, everything, self.settings, self.state, self.stop_ids)

    def generate(
        self,
        model: nn.Module,
        prompts: Sequence[list[int]],
        batch_size: int,
        processors: batched.Processors | None = None,
    ) -> list[list[int]]:
        """The answer to each prompt: the likeliest token each time, after ``processors`` changed the logits."""
        with self.trainer.accelerator.autocast():
            return batched.generate(
                model,
                prompts,
                max_new_tokens=self.settings.max_new_tokens,
                stop_ids=self.stop_ids,
                pad_id=self.pad_id,
                batch_size=batch_size,
                processors=processors or sampling.greedy_processors(self.tokens),
            )

    def _sample(self, number: int, prompts: dict[int, list[int]]) -> dict[int, list[int]]:
        """Row -> sampled answer, of this rank's share of the rows."""
        trainer, run, answers = self.trainer, self.trainer.run, dict[int, list[int]]()
        size, lengths = generation_batch_size(self.settings, run), [len(prompt) for prompt in prompts.values()]
        for rows in micro_batches(list(prompts), lengths, MicroBatch(size), run.rank, run.world_size):
            self._check_stop()
            keys = [sampling.row_key(trainer.args.seed, number, row) for row in rows]
            processors = sampling.batch_processors(self.settings, keys, self.tokens)
            batch = self.generate(trainer.model, [prompts[row] for row in rows], size, processors)
            answers |= dict(zip(rows, batch, strict=True))
        return answers

    def _forward_passes(
        self, prompts: dict[int, list[int]], answers: dict[int, list[int]]
    ) -> Iterator[tuple[int, ForwardPass]]:
        """Policy, value head and reference over this rank's answers, by row.

        These are the forward passes of training, because generation computes in another order. Here a row is in another
        batch than in its step. In fp32 the ratio of the probabilities is still 1, to 1e-6,
        until the first update. In bf16 it is 1 up to rounding, because sums over other shapes round elsewhere."""
        trainer, run = self.trainer, self.trainer.run
        lengths = {row: len(prompts[row]) + len(answer) for row, answer in answers.items()}
        longest_first = sorted(answers, key=lambda row: (-lengths[row], row))
        sizes = [lengths[row] for row in longest_first]
        (batches,) = deal(sizes, run.micro_batch, 1)
        if run.micro_batch.unit == "tokens":  # ranks have answers of other lengths, and the same number of batches
            counts = collectives.all_gather([len(batches)], trainer.args.device)
            (batches,) = by_tokens(sizes, run.micro_batch.size, 1, at_least=int(max(count for (count,) in counts)))
        trainer.model.train()
        for batch_rows in batches:
            self._check_stop()
            heartbeat.refresh()
            rows = [longest_first[place] for place in batch_rows]
            texts = [prompts[row] + answers[row] for row in rows]
            batch = trainer._prepare_inputs(answer_batch(texts, [len(prompts[row]) for row in rows]))
            with torch.no_grad(), trainer.compute_loss_context_manager():
                policy = policy_outputs.forward(trainer.model, batch)
                with self.reference.activated(trainer.model) as reference:
                    ref_log_probs = policy_outputs.forward(reference, batch).log_probs
            assert policy.values is not None
            ends = np.cumsum([len(answers[row]) for row in rows])[:-1]
            arrays = [values.cpu().numpy() for values in (policy.log_probs, policy.values, ref_log_probs)]
            yield from zip(rows, zip(*(np.split(array, ends) for array in arrays), strict=True), strict=True)
        sharding.reshard(trainer.model)

    def _check_stop(self) -> None:
        """Between two batches, because a rollout may take long. Called by all ranks. Raises StopRequested."""
        self.trainer.progress.refresh()
        if self.trainer.any_rank_stops():
            raise StopRequested


def make_rollout(
    number: int, experiences: Sequence[Experience], settings: PpoSpec, state: PpoState, stop_ids: Collection[int]
) -> Rollout:
    """The rollout of all answers, in the order of their rows. Updates the KL coefficient and the statistics of scores
    in ``state``."""
    by_row = sorted(experiences, key=lambda experience: experience.row)
    answer_lengths = np.array([len(experience.answer) for experience in by_row])
    mask = mask_of(answer_lengths)
    log_probs = padded([experience.log_probs for experience in by_row], np.float32)
    values = padded([experience.values for experience in by_row], np.float32)
    ref_log_probs = padded([experience.ref_log_probs for experience in by_row], np.float32)

    # Scores -> rewards of answers
    scores = np.array([experience.score for experience in by_row])
    has_end = np.array([experience.answer[-1] in stop_ids for experience in by_row])
    answer_rewards = state.normalizer.rollout_rewards(scores, has_end, has_end & (answer_lengths == 1))

    # Rewards of tokens, with the penalty on divergence
    kl, coefficient = rewards.kl_per_token(log_probs, ref_log_probs, mask), state.kl.coefficient
    token_rewards = rewards.token_rewards(answer_rewards, kl, mask, coefficient)
    if settings.whiten_rewards:
        token_rewards = whiten(token_rewards, mask, centre=False)

    # Advantages and returns
    advantages, returns = gae(token_rewards, values, mask, settings.gamma, settings.gae_lambda)
    mean_kl = float(kl.sum(axis=1).mean())
    state.kl.update(mean_kl, len(by_row))

    return Rollout(
        number=number,
        metrics={
            "reward": float(scores.mean()),
            "reward_normalized": float(answer_rewards.mean()),
            "kl": mean_kl,
            "kl_coefficient": coefficient,
            "answer_length": float(answer_lengths.mean()),
            "eos_rate": float(has_end.mean()),
        },
        token_ids=padded([experience.prompt + experience.answer for experience in by_row], np.int64),
        prompt_lengths=np.array([len(experience.prompt) for experience in by_row]),
        answer_lengths=answer_lengths,
        scores=scores.astype(np.float32),
        log_probs=log_probs,
        values=values,
        advantages=whiten(advantages, mask).astype(np.float32),
        returns=returns.astype(np.float32),
    )


def generation_batch_size(settings: PpoSpec, run: Run) -> int:
    """Prompts that a rank answers together. If an attempt has a smaller micro-batch than the job, because a GPU had no
    room, this is smaller in proportion."""
    training, of_job = run.job.training, first_micro_batch(run.job.training) or run.micro_batch
    if settings.rollout_micro_batch_size is None:
        return ROLLOUT_MICRO_BATCHES * run.micro_batch.rows(training.cutoff_length)
    return max(1, settings.rollout_micro_batch_size * min(run.micro_batch.size, of_job.size) // of_job.size)
