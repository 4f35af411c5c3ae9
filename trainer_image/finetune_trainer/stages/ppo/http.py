"""A reward service: texts out, scores in.

Used by `reward`. The protocol is LLaMA-Factory's, ``POST {"model": ..., "messages": [text, ...]}`` answered by
``{"scores": [...]}``. Neither texts nor the token are ever written to a log or an error.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
from finetune_api.stages import HttpRewardSpec

from finetune_trainer.errors import AccessDenied, InvalidSpec, SourceUnreachable, TrainerError
from finetune_trainer.fetch.retry import Unsteady, patiently

CHUNK = 64
"""Texts of one request."""
FIELD = "ppo.rewardModel.http"
TOKEN = "REWARD_TOKEN"
BUSY = (408, 425, 429)


class HttpReward:
    """One service. Without a token in the environment, none is sent."""

    def __init__(self, spec: HttpRewardSpec) -> None:
        self._spec = spec
        self._token = os.environ.get(TOKEN, "")
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {}, timeout=spec.timeout_seconds
        )

    def ask(self, texts: Sequence[str], check_stop: Callable[[], None]) -> list[float]:
        """The texts' scores, of at most `CHUNK` texts. Asked again where that may help; ``check_stop`` may raise, to
        end the waiting."""
        return patiently(lambda: self._once(texts), check_stop)

    def _once(self, texts: Sequence[str]) -> list[float]:
        what = f"{FIELD}: {self._spec.url}"
        try:
            answer = self._client.post(self._spec.url, json={"model": self._spec.model, "messages": list(texts)})
        except httpx2.TimeoutException:
            patience = self._spec.timeout_seconds
            raise Unsteady(f"{what} didn't answer within timeoutSeconds ({patience}) for {len(texts)} texts") from None
        except httpx2.HTTPError as error:
            raise Unsteady(f"{what} can't be reached ({type(error).__name__})") from None
        if answer.status_code != 200:
            raise self._refused(answer.status_code, what)
        try:
            said = answer.json()
        except ValueError:
            raise InvalidSpec(f"{what} answered no JSON, but {_kind(answer)}: {_EXPECTED}") from None
        return _scores(said, len(texts), what)

    def _refused(self, status: int, what: str) -> TrainerError:
        if status in (401, 403):
            how = "the token is not accepted" if self._token else "it wants a token, and none was sent"
            return AccessDenied(f"{what} answers {status}: {how}. Check the key {TOKEN} of the Secret named by secret")
        if status >= 500 or status in BUSY:
            return Unsteady(f"{what} answers {status}")
        return SourceUnreachable(f"{what} answers {status}: is it the address of a reward service? {_EXPECTED}")


_EXPECTED = 'a POST of {"model": ..., "messages": [text, ...]} is to be answered by {"scores": [a number for each]}'


def _kind(answer: Any) -> str:
    return str(answer.headers.get("content-type") or "nothing").partition(";")[0]


def _scores(said: Any, count: int, what: str) -> list[float]:
    """Raises InvalidSpec, in words that repeat nothing of what may be a text."""
    if not isinstance(said, dict) or "scores" not in said:
        got = (
            f"an object with {', '.join(map(repr, sorted(said)[:8])) or 'nothing'}"
            if isinstance(said, dict)
            else _a(said)
        )
        raise InvalidSpec(f"{what} answered {got}, and no scores: {_EXPECTED}")
    scores = said["scores"]
    if not isinstance(scores, list):
        raise InvalidSpec(f"{what}: its scores are {_a(scores)}: {_EXPECTED}")
    if len(scores) != count:
        raise InvalidSpec(f"{what} answered {len(scores)} scores for {count} texts: {_EXPECTED}")
    for place, score in enumerate(scores, 1):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise InvalidSpec(f"{what}: score {place} of {count} is {_a(score)}: {_EXPECTED}")
    return [float(score) for score in scores]


def _a(value: Any) -> str:
    """What it is, without what it says."""
    if isinstance(value, float):
        return str(value)
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return next((name for kind, name in names.items() if type(value) is kind), "null")
