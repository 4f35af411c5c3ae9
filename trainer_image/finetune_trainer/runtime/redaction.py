"""Removes secrets from what leaves the pod: its output, the termination message, the status and reports.

Our own messages have no secrets. Errors of libraries may: Python's HTTP client repeats a header that it cannot send,
and a model's own code may print what it likes. So every outlet replaces the values of the variables that come from
Secrets. Known forms are replaced too: the value as base64 and URL-encoded, and what follows Bearer or Basic.
"""

import base64
import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TextIO
from urllib.parse import quote, urlsplit

NAMES = "FINETUNE_SECRET_VARIABLES"
"""Variable with the names of all variables that come from Secrets, separated by commas. The operator sets it."""
KNOWN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "REWARD_TOKEN",
    "WANDB_API_KEY",
)
"""Variables with secrets where no operator names them: on a laptop, or with an earlier release of it."""
PLACES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "HF_ENDPOINT", "MLFLOW_TRACKING_USERNAME")
"""Variables that messages may name, although they may come from a Secret. A password in a URL is still replaced."""
SHORTEST = 6
"""Characters. Shorter values occur in ordinary text, which would become unreadable."""
MASK = "[secret]"
_AUTHORIZATION = re.compile(r"\b(Bearer|Basic) [\w.~+/=-]{16,}")


def redact(text: str) -> str:
    """The text without secrets."""
    return Redactor(secrets(os.environ)).redact(text)


def secrets(environment: Mapping[str, str]) -> frozenset[str]:
    """The values to replace, in all their forms."""
    named = [name.strip() for name in environment.get(NAMES, "").split(",")]
    values = [environment[name] for name in {*named, *KNOWN} - set(PLACES) if name in environment]
    values += [password for name in PLACES if (password := _password(environment.get(name, "")))]
    # A value of several lines (a key file) is not always repeated as a whole.
    lines = {line.strip() for value in values for line in (value, *value.splitlines())}
    return frozenset(form for line in lines if len(line) >= SHORTEST for form in _forms(line))


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None


def _forms(value: str) -> Iterable[str]:
    encoded = value.encode("utf-8", "surrogateescape")
    yield from (value, quote(encoded, safe=""), quote(encoded), repr(value)[1:-1])
    yield from (base64.b64encode(encoded).decode().rstrip("="), base64.urlsafe_b64encode(encoded).decode().rstrip("="))


@lru_cache(maxsize=8)
def _pattern(values: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(values, key=lambda value: (-len(value), value))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


class Redactor:
    """Replaces secrets in a stream, also those that are split between two chunks."""

    def __init__(self, values: frozenset[str]) -> None:
        self._values = values
        self._held = ""
        """The end of what came so far, if it may be the beginning of a secret."""

    def redact(self, text: str) -> str:
        """A whole text."""
        masked = _pattern(self._values).sub(MASK, text)
        return _AUTHORIZATION.sub(rf"\1 {MASK}", masked)

    def feed(self, chunk: str) -> str:
        """What may be written after the next chunk."""
        text = _pattern(self._values).sub(MASK, self._held + chunk)
        held = max((length for value in self._values if (length := _overlap(text, value))), default=0)
        self._held = text[len(text) - held :]
        return _AUTHORIZATION.sub(rf"\1 {MASK}", text[: len(text) - held])

    def end(self) -> str:
        """The rest."""
        rest, self._held = self._held, ""
        return self.redact(rest)


def _overlap(text: str, value: str) -> int:
    """The length of the longest end of the text that begins the value."""
    return next((n for n in range(min(len(value) - 1, len(text)), 0, -1) if text.endswith(value[:n])), 0)


class _Output:
    """In place of sys.stdout or sys.stderr."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def install() -> None:
    """Redact what this process prints and logs. `launcher.last_words` redacts what its ranks write."""
    sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)
