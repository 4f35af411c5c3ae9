"""A reward service: texts out, scores in.

Used by `reward`. The protocol is LLaMA-Factory's, ``POST {"model": ..., "messages": [text, ...]}`` answered by
``{"scores": [...]}``. Neither texts nor the token are ever written to a log or an error.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

import httpx2
from finetune_api.stages import HttpRewardSpec

from finetune_trainer.errors import AccessDenied, InvalidSpec, SourceUnreachable, TrainerError
from finetune_trainer.fetch.retry import Unsteady, patiently

CHUNK = 64
"""Texts of one request."""
PATIENCE = 300.0
"""Seconds after which it isn't tried again: GPUs are held meanwhile. A first try may take its timeoutSeconds."""
GLANCE = 0.2
"""Seconds between looks at whether the job is told to stop."""
FIELD = "ppo.rewardModel.http"
TOKEN = "REWARD_TOKEN"
BUSY = (408, 425, 429)
LAST_PORT = 65_535


class HttpReward:
    """One service. Without a token in the environment, none is sent. Raises InvalidSpec where its address is none, and
    AccessDenied where the token is one that no header can hold."""

    def __init__(self, spec: HttpRewardSpec) -> None:
        try:
            port = httpx2.URL(spec.url).port
        except httpx2.InvalidURL as error:
            raise InvalidSpec(f"{FIELD}.url: {spec.url} is no address: {error}") from None
        if port is not None and port > LAST_PORT:
            raise InvalidSpec(f"{FIELD}.url: {spec.url} is no address: ports go up to {LAST_PORT}")
        self._spec = spec
        self._token = os.environ.get(TOKEN, "").strip()  # files and `echo` end with a line break
        if not (self._token.isascii() and self._token.isprintable()):
            raise AccessDenied(
                f"{FIELD}: the token can't be sent, as it has line breaks inside, or characters that are not ASCII."
                f" Check the key {TOKEN} of the Secret named by secret"
            )
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {}, timeout=spec.timeout_seconds
        )

    def ask(self, texts: Sequence[str], check_stop: Callable[[], None]) -> list[float]:
        """The texts' scores, of at most `CHUNK` texts. Asked again where that may help; ``check_stop`` may raise, to
        end the waiting, at any time."""
        until = time.monotonic() + max(PATIENCE, self._spec.timeout_seconds)

        def once() -> list[float]:
            seconds = min(self._spec.timeout_seconds, until - time.monotonic())
            return _watched(lambda: self._once(texts, seconds), check_stop)

        return patiently(once, check_stop, until)

    def _once(self, texts: Sequence[str], seconds: float) -> list[float]:
        what = f"{FIELD}: {self._spec.url}"
        asked = {"model": self._spec.model, "messages": list(texts)}
        try:
            answer = self._client.post(self._spec.url, json=asked, timeout=max(seconds, GLANCE))
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


def _watched(ask: Callable[[], list[float]], check_stop: Callable[[], None]) -> list[float]:
    """Its answer, while ``check_stop`` is asked again and again. A thread that is left alone ends with the process."""
    future: Future[list[float]] = Future()

    def work() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name="reward-service", daemon=True).start()
    while not future.done():
        check_stop()
        wait([future], GLANCE)
    return future.result()


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
