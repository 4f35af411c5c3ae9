"""Who scores answers: a model of stage rm on each rank, or a service that rank 0 asks for all.

Made by the workflow, asked by the trainer. Texts are token ids, prompt and answer; an answer that came to its end has
its stop token.
"""

import logging
import math
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from finetune_api.stages import HttpRewardSpec

from finetune_trainer import heartbeat
from finetune_trainer.hostmemory import gibibytes
from finetune_trainer.model import reward as reward_model
from finetune_trainer.run import Run
from finetune_trainer.stages import agree
from finetune_trainer.stages.ppo import sharing
from finetune_trainer.stages.ppo.buffer import collate
from finetune_trainer.stages.ppo.http import CHUNK, HttpReward
from finetune_trainer.stages.ppo.scores import KeptScores

log = logging.getLogger(__name__)

SIGN_OF_LIFE = 10.0


class Stopped(Exception):
    """The job was told to stop while there was something to wait for: known to all ranks."""


class Scorer(Protocol):
    """Scores as they come, before anything is normalized."""

    mean: float | None
    """Of held-out scores, where they were measured."""
    std: float | None
    blind: bool
    """Whether an answer's end is hidden from it."""

    def place(self, device: torch.device, policy: Any) -> None:
        """Where it computes, if it does; ``policy`` is there already. None of a policy whose weights will be shares."""

    def of(self, texts: Sequence[list[int]]) -> list[float]:
        """Of this rank's texts, whatever others do."""

    def of_rollout(self, step: int, texts: Mapping[int, list[int]]) -> dict[int, float]:
        """Of this rank's rows of a rollout that begins at this step. Called by all ranks."""

    def forget(self, step: int) -> None:
        """A checkpoint of this step is in its place, or what this step was the last for."""


class ModelScorer:
    """A reward model, which scores each text where stage rm has trained it: by its last token that isn't its padding
    token. Of an answer that came to its end that is the stop token, or the one before where it pads with that."""

    def __init__(self, run: Run, stop_ids: Collection[int] = ()) -> None:
        self._model, self._size = reward_model.load(run), run.micro_batch_size
        self.mean, self.std = self._model.mean, self._model.std
        self.blind = self._model.pad_id in stop_ids

    def place(self, device: torch.device, policy: Any) -> None:
        shared = sharing.place(self._model.model, device, policy) if policy is not None else 0
        self._model.model.to(device)
        if shared:
            log.info("the reward model shares %s of weights with the policy", gibibytes(shared))

    def of(self, texts: Sequence[list[int]]) -> list[float]:
        longest_first = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        found: dict[int, float] = {}
        for first in range(0, len(texts), self._size):
            numbers = longest_first[first : first + self._size]
            batch = collate([texts[number] for number in numbers], [0] * len(numbers), self._model.pad_id)
            heartbeat.alive()
            scores = self._model.score(batch["input_ids"], batch["attention_mask"])
            found |= dict(zip(numbers, scores.tolist(), strict=True))
        return [found[number] for number in range(len(texts))]

    def of_rollout(self, step: int, texts: Mapping[int, list[int]]) -> dict[int, float]:  # noqa: ARG002
        return dict(zip(texts, self.of(list(texts.values())), strict=True))

    def forget(self, step: int) -> None:
        pass


class ServiceScorer:
    """A service, which gets texts with all their special tokens. In rollouts rank 0 asks for all ranks, and what comes
    is kept."""

    mean: float | None = None
    std: float | None = None
    blind = False

    def __init__(self, run: Run, spec: HttpRewardSpec, tokens: Any) -> None:
        self._run, self._tokens, self._service = run, tokens, HttpReward(spec)
        self._kept = KeptScores(run.folders.job, [spec.url, spec.model])

    def place(self, device: torch.device, policy: Any) -> None:
        pass

    def of(self, texts: Sequence[list[int]]) -> list[float]:
        scores: list[float] = []
        try:
            with waiting():
                for chunk in _chunks(self._read(texts)):
                    scores += self._service.ask(chunk, self._check_stop)
        except Stopped:  # ranks agree on it after each batch, and then leave the evaluation out
            return [math.nan] * len(texts)
        return scores

    def of_rollout(self, step: int, texts: Mapping[int, list[int]]) -> dict[int, float]:
        everything = {row: text for rank in agree.gather(dict(texts)) for row, text in rank.items()}
        rows = sorted(everything)
        scores: list[float] = []
        for chunk in _chunks(self._read([everything[row] for row in rows])):
            scores += self._by_rank_0(step, chunk)
        by_row = dict(zip(rows, scores, strict=True))
        return {row: by_row[row] for row in texts}

    def forget(self, step: int) -> None:
        if self._run.is_main:
            self._kept.forget(step)

    def _by_rank_0(self, step: int, chunk: list[str]) -> list[float]:
        """On all ranks, what rank 0 was told, or why it wasn't."""
        scores: list[float] = []
        error: Exception | None = None
        with waiting():
            if self._run.is_main:
                try:
                    scores = self._kept.get(step, chunk, lambda texts: self._service.ask(texts, self._check_stop))
                except Exception as failure:
                    error = failure
            scores, error = agree.from_main((scores, error))
        if error is not None:
            raise error
        return scores

    def _check_stop(self) -> None:
        if self._run.stop_requested():
            raise Stopped

    def _read(self, texts: Sequence[list[int]]) -> list[str]:
        read: list[str] = self._tokens.batch_decode(list(texts), skip_special_tokens=False)
        return read


def make(run: Run, tokens: Any, stop_ids: Collection[int]) -> Scorer:
    """The job's."""
    assert run.job.ppo is not None
    spec = run.job.ppo.reward_model
    return ServiceScorer(run, spec.http, tokens) if spec.http is not None else ModelScorer(run, stop_ids)


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    return (texts[first : first + CHUNK] for first in range(0, len(texts), CHUNK))


@contextmanager
def waiting() -> Iterator[None]:
    """While a service is asked, which has its own bound on time, ranks that wait for its answer don't count as hung."""
    over = threading.Event()

    def live() -> None:
        while not over.wait(SIGN_OF_LIFE):
            heartbeat.alive()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
