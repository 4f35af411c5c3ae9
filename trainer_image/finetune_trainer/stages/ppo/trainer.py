"""PPO as a Trainer: every few steps the model answers prompts, and each step learns from a part of the answers.

Step s belongs to rollout s // steps_per_rollout (`schedule`). Before a rollout's first step all ranks answer their
share of its prompts, score them, and see what policy, critic and reference say of them; then all know everything, and
each makes the same rollout of it (`experience`). The loss of a step is a sum over tokens divided by those of the whole
global batch. So results hang neither on ranks nor on micro-batches, and a run goes on from any step.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler, SequentialSampler

from finetune_trainer import heartbeat
from finetune_trainer.evaluation.generate import answers
from finetune_trainer.model import sharding
from finetune_trainer.run import Run
from finetune_trainer.stages import agree
from finetune_trainer.stages.engine import Batch, Engine, Values
from finetune_trainer.stages.ppo import experience, heads, kl, sampling
from finetune_trainer.stages.ppo.buffer import Memory, Rollout, collate
from finetune_trainer.stages.ppo.experience import Seen
from finetune_trainer.stages.ppo.objective import policy_losses, value_losses
from finetune_trainer.stages.ppo.questions import Questions, prompts_of
from finetune_trainer.stages.ppo.reward import Scorer, Stopped
from finetune_trainer.stages.ppo.rewards import Normalizer
from finetune_trainer.stages.ppo.samples import Samples
from finetune_trainer.stages.ppo.schedule import Schedule, dealt
from finetune_trainer.stages.reference import Reference
from finetune_trainer.stages.steps import Steps

ROLLOUT_MICRO_BATCHES = 4
"""Micro-batches of training that are answered at once, where the job doesn't say."""


class PpoTrainer(Engine):
    """Made by the workflow."""

    data: Questions

    def __init__(
        self,
        *,
        data: Questions,
        run: Run,
        processing_class: Any,
        reference: Reference,
        scorer: Scorer,
        stop_ids: Sequence[int],
        **kwargs: Any,
    ) -> None:
        assert run.job.ppo is not None
        self.settings = run.job.ppo
        self.schedule = schedule(data, run)
        normalizer = Normalizer(self.settings, scorer.mean, scorer.std, scorer.blind)
        self.memory = Memory(kl.controller(self.settings), normalizer)
        self.reference, self.scorer, self.stop_ids = reference, scorer, list(stop_ids)
        self.pad_id = processing_class.pad_token_id
        self.samples = Samples(run, processing_class)
        super().__init__(data=data, run=run, processing_class=processing_class, keeps=self.memory, **kwargs)
        heads.without_dropout(self.model)
        reference.place(self)
        scorer.place(self.args.device, None if self.is_fsdp_enabled else self.model)
        self.saver.told.append(lambda saved: scorer.forget(saved.step))

    @classmethod
    def items_per_epoch(cls, data: Any, run: Run) -> int:
        return schedule(data, run).items

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:  # noqa: ARG002
        """Nothing is drawn from it: it has the length that epochs are counted by."""
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:  # noqa: ARG002
        step, batches = self.state.global_step, list[Batch]()
        if step < self.state.max_steps:
            rollout = self._rollout(step)
            rows = dealt(self.schedule.rows_of(step), rollout.lengths, self.run.micro_batch_size, *self._place)
            batches = [rollout.batch(micro_batch, self.pad_id) for micro_batch in rows]
        return super().get_batch_samples(iter(batches), len(batches), device)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Policy and values (Schulman et al., 2017, eq. 9), as sums over tokens by the tokens of the global batch.
        There is no bonus for entropy: divergence from the reference has its price already."""
        settings, said = self.settings, heads.say(model, inputs)
        assert said.values is not None
        policy, clipped = policy_losses(said.log_probs, inputs["log_probs"], inputs["advantages"], settings.clip_range)
        value = value_losses(said.values, inputs["values"], inputs["returns"], settings.value_clip_range)
        tokens = len(policy)
        self.note(
            policy_loss=(policy.sum(), tokens), value_loss=(value.sum(), tokens), clip_fraction=(clipped.sum(), tokens)
        )
        if said.entropy is not None:
            self.note(entropy=(said.entropy.sum(), tokens))
        total = policy.sum() + settings.value_coefficient * value.sum()
        loss: torch.Tensor = total / num_items_in_batch * self.ranks
        return loss

    def measured(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The likeliest answers, and what they are worth: raw, and as it would be learned from."""
        prompts = prompts_of(batch)
        made = self._answers(model, prompts, len(prompts))
        rewards = self.scorer.of([prompt + answer for prompt, answer in zip(prompts, made, strict=True)])
        self.samples.take(prompts, made, rewards)
        lengths, ended = np.array([len(one) for one in made]), np.array([one[-1] in self.stop_ids for one in made])
        found = {
            "reward": np.array(rewards),
            "reward_normalized": self.memory.normalize.held_out(np.array(rewards), ended, ended & (lengths == 1)),
            "answer_length": lengths,
            "eos_rate": ended,
        }
        return {name: torch.from_numpy(values.astype(np.float64)) for name, values in found.items()}

    def summary(self, values: Values) -> dict[str, float]:
        """The loss is what the best checkpoint has least of."""
        if self._steps.weights_step is None:  # the best weights' answers were written when these were the newest
            self.samples.write(self.state.global_step)
        names = ("reward", "reward_normalized", "answer_length", "eos_rate")
        means = {name: float(values[name].mean()) for name in names}
        return {"loss": -means["reward_normalized"], **means}

    # Rollouts

    @property
    def _place(self) -> tuple[int, int]:
        return self.run.rank, self.run.world_size

    def _rollout(self, step: int) -> Rollout:
        """The one that a step learns from: in memory, or made now."""
        number, rollout = self.schedule.rollout(step), self.memory.rollout
        if rollout is None or rollout.number != number:
            try:
                rollout = self.memory.rollout = self._made(number, step)
            except Stopped:
                self._steps.leave()
                raise
            heartbeat.beat("train", step)
        for name, value in rollout.facts.items():
            self.noted.add_for_all(name, value)
        return rollout

    def _made(self, number: int, step: int) -> Rollout:
        heartbeat.beat("generate", step)
        prompts = {row: self.data.prompt(item) for row, item in enumerate(self.schedule.prompts_of(number))}
        mine = self._answered(number, prompts)
        scores = self.scorer.of_rollout(step, {row: prompts[row] + answer for row, answer in mine.items()})
        seen = [Seen(row, prompts[row], mine[row], scores[row], *said) for row, said in self._looked_at(prompts, mine)]
        everything = [one for rank in agree.gather(seen) for one in rank]
        return experience.rollout(number, everything, self.settings, self.memory, self.stop_ids)

    def _answered(self, number: int, prompts: dict[int, list[int]]) -> dict[int, list[int]]:
        """Row -> answer, for this rank's share."""
        size, found = self._rollout_size, dict[int, list[int]]()
        for rows in dealt(list(prompts), [len(prompt) for prompt in prompts.values()], size, *self._place):
            self._look_out()
            keys = [sampling.row_key(self.args.seed, number, row) for row in rows]
            made = self._answers(
                self.model,
                [prompts[row] for row in rows],
                size,
                lambda batch, width, keys=keys: sampling.processors(
                    self.settings, [keys[number] for number in batch], width
                ),
            )
            found |= dict(zip(rows, made, strict=True))
        return found

    def _looked_at(
        self, prompts: dict[int, list[int]], mine: dict[int, list[int]]
    ) -> Iterator[tuple[int, tuple[Any, Any, Any]]]:
        """What the policy, the critic and the reference say of the tokens of this rank's answers, by the forward pass
        of training, as generation computes in another order. A row has other rows beside it here than in its step, and
        maybe other padding: to fp32 that is nothing, and its ratio is 1 before anything is learned, to 1e-6; in bf16 it
        is 1 but for rounding, as sums over other shapes are rounded elsewhere."""
        lengths = {row: len(prompts[row]) + len(answer) for row, answer in mine.items()}
        rows = sorted(mine, key=lambda row: (-lengths[row], row))
        size = self.run.micro_batch_size
        self.model.train()
        for first in range(0, len(rows), size):
            self._look_out()
            heartbeat.alive()
            chosen = rows[first : first + size]
            texts = [prompts[row] + mine[row] for row in chosen]
            batch = self._prepare_inputs(collate(texts, [len(prompts[row]) for row in chosen], self.pad_id))
            with torch.no_grad(), self.compute_loss_context_manager():
                said = heads.say(self.model, batch)
                with self.reference.in_place(self.model) as reference:
                    compared = heads.say(reference, batch)
            assert said.values is not None
            ends = np.cumsum([len(mine[row]) for row in chosen])[:-1]
            arrays = [values.cpu().numpy() for values in (said.log_probs, said.values, compared.log_probs)]
            for row, *of_row in zip(chosen, *(np.split(array, ends) for array in arrays), strict=True):
                yield row, (of_row[0], of_row[1], of_row[2])
        sharding.reshard(self.model)

    def _answers(self, model: Any, prompts: list[list[int]], size: int, processors: Any = None) -> list[list[int]]:
        with self.accelerator.autocast():
            return answers(
                model,
                prompts,
                max_new_tokens=self.settings.max_new_tokens,
                stop_ids=self.stop_ids,
                pad_id=self.pad_id,
                batch_size=size,
                processors=processors,
            )

    def _look_out(self) -> None:
        """Between two batches of a rollout, which may take long. Raises Stopped on all ranks, if one was told to."""
        self._steps.progress.alive()
        if any(stop for (stop,) in agree.share([self.run.stop_requested()], self.args.device)):
            raise Stopped

    @property
    def _rollout_size(self) -> int:
        """Prompts answered at once. Where a GPU had no room and an attempt has a smaller micro-batch than the job, this
        is smaller by as much."""
        training, micro_batch = self.run.job.training, self.run.micro_batch_size
        asked = self.settings.rollout_micro_batch_size
        if asked is None:
            return ROLLOUT_MICRO_BATCHES * micro_batch
        return max(1, asked * min(micro_batch, training.micro_batch_size or 1) // (training.micro_batch_size or 1))

    @property
    def _steps(self) -> Steps:
        return next(one for one in self.callback_handler.callbacks if isinstance(one, Steps))


def schedule(data: Any, run: Run) -> Schedule:
    """Of the job's training on these prompts."""
    training, settings = run.job.training, run.job.ppo
    assert settings is not None
    return Schedule(
        prompts=len(data),
        rollout_batch=settings.rollout_batch_size or training.global_batch_size,
        global_batch=training.global_batch_size,
        epochs=settings.epochs,
        seed=training.seed,
    )
