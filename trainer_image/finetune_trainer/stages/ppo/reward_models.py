"""What scores answers: a reward model on each rank, or a service that rank 0 calls for all ranks.

The workflow makes a `Scorer`; `collector` and `trainer` call it. Texts are token ids, prompt and answer. An answer that
has an end has its stop token.
"""

import logging
import math
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from finetune_api.stages import HttpRewardSpec
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetune_trainer import collectives
from finetune_trainer.model import reward_model
from finetune_trainer.run import Run
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.hostmemory import gibibytes
from finetune_trainer.stages.ppo.reward_service import CHUNK, RewardClient, ScoreCache
from finetune_trainer.training.trainer import StopRequested

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0


class Scorer(Protocol):
    """Computes raw scores, before normalization."""

    mean: float | None
    """Mean of the scores of held-out answers, if stage rm measured it."""
    std: float | None
    """Standard deviation of those scores."""
    ignores_stop_token: bool
    """Whether an answer with its stop token scores like the same answer without."""

    def place(self, device: torch.device, policy: nn.Module | None) -> None:
        """Move a model to the device. ``policy`` is there already, and may share weights; None if it is sharded."""

    def score(self, texts: Sequence[list[int]]) -> list[float]:
        """Scores of this rank's texts. Other ranks need not take part."""

    def score_rollout(self, step: int, texts: Mapping[int, list[int]]) -> dict[int, float]:
        """Row -> score, of this rank's rows of a rollout that begins at this step. Called by all ranks."""

    def drop_cache(self, step: int) -> None:
        """Called once scores of rollouts before this step are not needed again: a checkpoint or the artifact is
        complete."""


class ModelScorer:
    """A reward model on each rank. It reads the score where stage rm trained it: at the last token that is not the
    reward model's padding token. If an answer has an end, that is its stop token, or the token before if the model pads
    with the stop token."""

    def __init__(self, run: Run, stop_ids: Collection[int] = (), tokens: int = 0) -> None:
        """``tokens``: size of the job's tokenizer."""
        self._model = reward_model.load(run, tokens=tokens)
        self._batch_size = run.micro_batch.rows(run.job.training.cutoff_length)
        self.mean, self.std = self._model.mean, self._model.std
        self.ignores_stop_token = self._model.pad_id in stop_ids

    def place(self, device: torch.device, policy: nn.Module | None) -> None:
        shared = share_weights(self._model.model, device, policy) if policy is not None else 0
        self._model.model.to(device)
        if shared:
            log.info("the reward model shares %s of weights with the policy", gibibytes(shared))

    def score(self, texts: Sequence[list[int]]) -> list[float]:
        longest_first = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        scores: dict[int, float] = {}
        for start in range(0, len(texts), self._batch_size):
            indices = longest_first[start : start + self._batch_size]
            heartbeat.refresh()
            batch_scores = self._model.score([texts[index] for index in indices])
            scores |= dict(zip(indices, batch_scores.tolist(), strict=True))
        return [scores[index] for index in range(len(texts))]

    def score_rollout(self, step: int, texts: Mapping[int, list[int]]) -> dict[int, float]:  # noqa: ARG002
        return dict(zip(texts, self.score(list(texts.values())), strict=True))

    def drop_cache(self, step: int) -> None:
        """A model has no cache: it computes the same scores again."""


class ServiceScorer:
    """A reward service. It gets texts as strings, with all special tokens. In a rollout, rank 0 calls it for all ranks,
    and caches the scores on the workspace."""

    mean: float | None = None
    std: float | None = None
    ignores_stop_token = False

    def __init__(self, run: Run, spec: HttpRewardSpec, tokens: PreTrainedTokenizerBase) -> None:
        self._run, self._tokens, self._client = run, tokens, RewardClient(spec)
        self._cache = ScoreCache(run.folders.job, [spec.url, spec.model])

    def place(self, device: torch.device, policy: nn.Module | None) -> None:
        """Nothing to place."""

    def score(self, texts: Sequence[list[int]]) -> list[float]:
        """NaN for all texts if the job has to stop: ranks agree on that after each batch of an evaluation, and then
        discard it."""
        scores: list[float] = []
        try:
            with heartbeats():
                for chunk in _chunks(self._decode(texts)):
                    scores += self._client.score(chunk, self._check_stop)
        except StopRequested:
            return [math.nan] * len(texts)
        return scores

    def score_rollout(self, step: int, texts: Mapping[int, list[int]]) -> dict[int, float]:
        by_row = {row: text for rank in collectives.all_gather_objects(dict(texts)) for row, text in rank.items()}
        rows = sorted(by_row)
        scores: list[float] = []
        for chunk in _chunks(self._decode([by_row[row] for row in rows])):
            scores += self._score_on_rank_0(step, chunk)
        score_of = dict(zip(rows, scores, strict=True))
        return {row: score_of[row] for row in texts}

    def drop_cache(self, step: int) -> None:
        if self._run.is_main:
            self._cache.drop(step)

    def _score_on_rank_0(self, step: int, chunk: list[str]) -> list[float]:
        """Returns the scores, or raises the error, of rank 0 on all ranks."""
        scores: list[float] = []
        error: Exception | None = None
        with heartbeats():
            if self._run.is_main:
                try:
                    scores = self._cache.get(step, chunk, lambda texts: self._client.score(texts, self._check_stop))
                except Exception as failure:
                    error = failure
            scores, error = collectives.broadcast((scores, error))
        if error is not None:
            raise error
        return scores

    def _check_stop(self) -> None:
        if self._run.stop_requested():
            raise StopRequested

    def _decode(self, texts: Sequence[list[int]]) -> list[str]:
        decoded: list[str] = self._tokens.batch_decode(list(texts), skip_special_tokens=False)
        return decoded


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    return (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))


@contextmanager
def heartbeats() -> Iterator[None]:
    """Around a wait for the service, or for the rank that calls it. The client bounds that time itself, so it must not
    count as a hang."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            heartbeat.refresh()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def load_scorer(run: Run, tokens: PreTrainedTokenizerBase, stop_ids: Collection[int]) -> Scorer:
    """The scorer of the job. A model is in host memory afterwards."""
    assert run.job.ppo is not None
    service = run.job.ppo.reward_model.http
    return ModelScorer(run, stop_ids, len(tokens)) if service is None else ServiceScorer(run, service, tokens)


def share_weights(model: nn.Module, device: torch.device, policy: nn.Module) -> int:
    """Move the model's weights to the device, and let it use the policy's frozen weights where they are equal to the
    last bit: of two adapters on one base, all but adapters and heads. Scores do not change. Returns the bytes shared.

    Weights move one by one, so the base never needs room twice.
    """
    frozen = {_base_name(name): weight for name, weight in policy.named_parameters() if not weight.requires_grad}
    shared = 0
    for name, weight in model.named_parameters():
        moved, candidate = weight.data.to(device), frozen.get(_base_name(name))
        if candidate is not None and _equal(candidate.data, moved):
            moved = candidate.data
            shared += moved.numel() * moved.element_size()
        weight.data = moved
    return shared


def _base_name(name: str) -> str:
    """A weight's name without what peft adds around its layer."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    alike = left.device == right.device and left.dtype == right.dtype and left.shape == right.shape
    return alike and torch.equal(left, right)
