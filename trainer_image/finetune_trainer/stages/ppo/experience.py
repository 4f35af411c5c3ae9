"""From answers and what models say of them to what is learned: divergence, rewards, advantages.

Used by the trainer once all ranks have told each other what they saw, so that each of them makes the same rollout, and
it doesn't depend on who saw what.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from finetune_api.stages import PpoSpec

from finetune_trainer.stages.ppo import kl
from finetune_trainer.stages.ppo.advantages import gae, whiten
from finetune_trainer.stages.ppo.buffer import Memory, Rollout, Singles, mask_of, padded


@dataclass(frozen=True)
class Seen:
    """One answer, as the rank saw it that made it."""

    row: int
    prompt: list[int]
    answer: list[int]
    score: float
    log_probs: Singles
    """Of the answer's tokens; so are the next two."""
    values: Singles
    reference: Singles


def rollout(
    number: int, everything: Sequence[Seen], settings: PpoSpec, memory: Memory, stop_ids: Collection[int]
) -> Rollout:
    """What is learned from all answers. The controller of KL and the statistics of scores take note of them."""
    seen = sorted(everything, key=lambda one: one.row)
    answers = np.array([len(one.answer) for one in seen])
    mask = mask_of(answers)
    log_probs, values, reference = (
        padded([getattr(one, name) for one in seen], np.float32) for name in ("log_probs", "values", "reference")
    )
    ended = np.array([one.answer[-1] in stop_ids for one in seen])
    scores = np.array([one.score for one in seen])
    normal = memory.normalize(scores, ended, ended & (answers == 1))

    apart = kl.divergence(log_probs, reference, mask)
    coefficient = memory.control.coefficient
    rewards = kl.rewards(normal, apart, mask, coefficient)
    if settings.whiten_rewards:
        rewards = whiten(rewards, mask, centre=False)
    advantages, returns = gae(rewards, values, mask, settings.gamma, settings.gae_lambda)
    divergence = float(apart.sum(axis=1).mean())
    memory.control.update(divergence, len(seen))

    return Rollout(
        number=number,
        facts={
            "reward": float(scores.mean()),
            "reward_normalized": float(normal.mean()),
            "kl": divergence,
            "kl_coefficient": coefficient,
            "answer_length": float(answers.mean()),
            "eos_rate": float(ended.mean()),
        },
        ids=padded([one.prompt + one.answer for one in seen], np.int64),
        prompts=np.array([len(one.prompt) for one in seen]),
        answers=answers,
        scores=scores.astype(np.float32),
        log_probs=log_probs,
        values=values,
        advantages=whiten(advantages, mask).astype(np.float32),
        returns=returns.astype(np.float32),
    )
