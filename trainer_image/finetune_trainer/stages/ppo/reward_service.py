"""A reward service: an HTTP server of the user that scores texts.

The protocol is LLaMA-Factory's: ``POST {"model": ..., "messages": [text, ...]}``, answered by ``{"scores": [...]}``.
Logs and errors contain neither texts nor the token.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread

import httpx2
from finetune_api.contract import canonical
from finetune_api.stages import HttpRewardSpec

from finetune_trainer.errors import AccessDenied, InvalidSpec, SourceUnreachable, TrainerError
from finetune_trainer.fetch.retry import TransientError, with_retries
from finetune_trainer.workspace.files import write_json
from finetune_trainer.workspace.storage import storage_errors

log = logging.getLogger(__name__)

FIELD = "ppo.rewardModel.http"
TOKEN = "REWARD_TOKEN"
CHUNK = 64
"""Texts of one request."""
RETRY_SECONDS = 300.0
"""A request is retried for this long, or for timeoutSeconds if that is longer. GPUs are idle meanwhile."""
POLL_SECONDS = 0.2
"""Interval at which a request in flight checks whether the job has to stop."""
BUSY = (408, 425, 429)
LAST_PORT = 65_535
CACHE_FOLDER = "scores"

CheckStop = Callable[[], None]
"""Raises if the job has to stop."""


class RewardClient:
    """The HTTP client of one service. It sends the token of the environment, if there is one. Raises InvalidSpec for an
    invalid URL, and AccessDenied for a token that is not a valid header."""

    def __init__(self, spec: HttpRewardSpec) -> None:
        invalid = f"{FIELD}.url: {spec.url} is not a valid URL"
        try:
            port = httpx2.URL(spec.url).port
        except httpx2.InvalidURL as error:
            raise InvalidSpec(f"{invalid}: {error}. Set the URL of a reward service.") from None
        if port is not None and port > LAST_PORT:
            raise InvalidSpec(f"{invalid}: the highest port is {LAST_PORT}. Set the URL of a reward service.")
        self._spec = spec
        self._token = os.environ.get(TOKEN, "").strip()  # files and `echo` end with a line break
        if not (self._token.isascii() and self._token.isprintable()):
            raise AccessDenied(
                f"{FIELD}: the token cannot be sent, because it contains a line break or a character that is not ASCII."
                f" {_CHECK_TOKEN}"
            )
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._http = httpx2.Client(headers=headers, timeout=spec.timeout_seconds)

    def score(self, texts: Sequence[str], check_stop: CheckStop) -> list[float]:
        """Scores of at most `CHUNK` texts. Errors that may go away are retried. ``check_stop`` may end the wait at any
        time."""
        deadline = time.monotonic() + max(RETRY_SECONDS, self._spec.timeout_seconds)

        def attempt() -> list[float]:
            seconds = min(self._spec.timeout_seconds, deadline - time.monotonic())
            return _interruptible(lambda: self._request(texts, seconds), check_stop)

        return with_retries(attempt, check_stop, deadline)

    def _request(self, texts: Sequence[str], seconds: float) -> list[float]:
        service = f"{FIELD}: {self._spec.url}"
        body = {"model": self._spec.model, "messages": list(texts)}
        try:
            response = self._http.post(self._spec.url, json=body, timeout=max(seconds, POLL_SECONDS))
        except httpx2.TimeoutException:
            raise TransientError(
                f"{service} did not answer within timeoutSeconds ({self._spec.timeout_seconds}) for {len(texts)} texts."
                " Check the load of the service, or raise timeoutSeconds."
            ) from None
        except httpx2.HTTPError as error:
            raise TransientError(
                f"{service} cannot be reached ({type(error).__name__}). Check that the service runs and that the job's"
                " pods may connect to it."
            ) from None
        if response.status_code != 200:
            raise self._status_error(response.status_code, service)
        try:
            content = response.json()
        except ValueError:
            media_type = str(response.headers.get("content-type") or "nothing").partition(";")[0]
            raise InvalidSpec(f"{service} answered no JSON, but {media_type}. {_EXPECTED}") from None
        return parse_scores(content, len(texts), service)

    def _status_error(self, status: int, service: str) -> TrainerError:
        if status in (401, 403):
            reason = "the token is not accepted" if self._token else "it requires a token, and none was sent"
            return AccessDenied(f"{service} answers {status}: {reason}. {_CHECK_TOKEN}")
        if status >= 500 or status in BUSY:
            return TransientError(f"{service} answers {status}. Check the service.")
        return SourceUnreachable(f"{service} answers {status}. Check that it is a reward service. {_EXPECTED}")


_CHECK_TOKEN = f"Check the key {TOKEN} of the Secret {FIELD}.secret."
_EXPECTED = 'It must answer a POST of {"model": ..., "messages": [text, ...]} with {"scores": [a number per text]}.'


def _interruptible(request: Callable[[], list[float]], check_stop: CheckStop) -> list[float]:
    """The result of ``request``, with ``check_stop`` called meanwhile. If that raises, the thread of the request
    continues alone, and ends with the process."""
    future: Future[list[float]] = Future()

    def work() -> None:
        try:
            future.set_result(request())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name="reward-service", daemon=True).start()
    while not future.done():
        check_stop()
        wait([future], POLL_SECONDS)
    return future.result()


def parse_scores(content: object, count: int, service: str) -> list[float]:
    """Scores in the JSON of an answer. Raises InvalidSpec, whose message repeats nothing that may be a text."""
    if not isinstance(content, dict) or "scores" not in content:
        answer = _json_type(content)
        if isinstance(content, dict):
            answer = f"an object with {', '.join(map(repr, sorted(content)[:8])) or 'nothing'}"
        raise InvalidSpec(f"{service} answered {answer}, and no scores. {_EXPECTED}")
    scores = content["scores"]
    if not isinstance(scores, list):
        raise InvalidSpec(f"{service}: its scores are {_json_type(scores)}. {_EXPECTED}")
    if len(scores) != count:
        raise InvalidSpec(f"{service} answered {len(scores)} scores for {count} texts. {_EXPECTED}")
    for number, score in enumerate(scores, 1):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise InvalidSpec(f"{service}: score {number} of {count} is {_json_type(score)}. {_EXPECTED}")
    return [float(score) for score in scores]


def _json_type(value: object) -> str:
    """The type of a JSON value, without its content."""
    if isinstance(value, float):
        return str(value)  # NaN or infinity
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return next((name for kind, name in names.items() if type(value) is kind), "null")


class ScoreCache:
    """Scores of rollouts in ``jobs/<name>/scores/``, so that a resumed run does not call the service again for the same
    texts. Each answer of the service is a file, named by the step of the rollout and the digest of the request. It is
    complete before its scores are used. A checkpoint after that step has the rollout: then the file is deleted.

    ``folder`` is the job's directory; ``service`` is part of the digest.
    """

    def __init__(self, folder: Path, service: Sequence[str]) -> None:
        self._folder, self._service = folder / CACHE_FOLDER, list(service)

    def get(self, step: int, texts: Sequence[str], request: Callable[[Sequence[str]], list[float]]) -> list[float]:
        """The scores of the texts: from the cache, or by ``request``."""
        digest = hashlib.sha256(canonical([self._service, list(texts)]).encode()).hexdigest()
        file = self._folder / f"{step:08d}-{digest[:32]}.json"
        cached = _read(file, len(texts))
        if cached is not None:
            return cached
        scores = request(texts)
        with storage_errors(self._folder.parent):
            self._folder.mkdir(exist_ok=True)
            write_json(file, {"scores": scores})
        return scores

    def drop(self, step: int) -> None:
        """Delete the scores of rollouts before this step, and the directory once it is empty."""
        try:
            for file in self._folder.glob("*.json"):
                if int(file.name.partition("-")[0]) < step:
                    file.unlink(missing_ok=True)
            if self._folder.is_dir() and not any(self._folder.iterdir()):
                self._folder.rmdir()
        except (OSError, ValueError) as error:
            log.warning("cached scores of the reward service cannot be deleted: %s", error)


def _read(file: Path, count: int) -> list[float] | None:
    """None if the file is absent or damaged."""
    try:
        scores: list[float] = json.loads(file.read_bytes())["scores"]
        return scores if len(scores) == count else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
