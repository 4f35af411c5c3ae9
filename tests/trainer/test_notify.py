"""`python -m finetune_trainer notify`: what a webhook gets, and what the log never says."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from finetune_trainer import notify

SECRET = "s3cr3t"


class Hook(HTTPServer):
    """A webhook that answers as told, then 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(({k.lower(): v for k, v in self.headers.items()}, json.loads(body)))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run(url: str, header: str = "") -> tuple[int, list[float]]:
    """The exit code, and the pauses that were made."""
    pauses: list[float] = []
    environment = {
        "FINETUNE_NOTIFY_URL": url,
        "FINETUNE_NOTIFY_HEADER": header,
        "FINETUNE_NOTIFICATION": json.dumps({"phase": "Succeeded", "text": "über"}, ensure_ascii=False),
    }
    return notify.main(environment, sleep=pauses.append), pauses


def test_the_payload_arrives_with_the_header(hook: Hook) -> None:
    assert run(hook.url, f"Authorization: Bearer {SECRET}\n") == (0, [])
    [(headers, body)] = hook.got
    assert body == {"phase": "Succeeded", "text": "über"}
    assert (headers["authorization"], headers["content-type"]) == (f"Bearer {SECRET}", "application/json")


def test_trouble_of_the_service_is_tried_again(hook: Hook) -> None:
    hook.answers = [503, 429]
    assert run(hook.url) == (0, [1.0, 5.0])
    assert len(hook.got) == 3


@pytest.mark.parametrize("answer", [302, 401, 404])
def test_a_refusal_is_final_and_a_redirect_is_not_followed(hook: Hook, answer: int) -> None:
    hook.answers = [answer]
    assert run(hook.url, f"X-Token: {SECRET}") == (77, [])
    assert len(hook.got) == 1


def test_a_service_that_never_answers_is_given_up() -> None:
    assert run(f"http://127.0.0.1:1/{SECRET}") == (69, [1.0, 5.0, 15.0, 30.0])


@pytest.mark.parametrize(("url", "header"), [("file:///etc/passwd", ""), ("http://127.0.0.1:1", SECRET)])
def test_a_secret_with_a_mistake_is_refused(url: str, header: str) -> None:
    assert run(url, header) == (64, [])


@pytest.mark.parametrize("answers", [[200], [500, 404], [302]])
def test_the_log_has_neither_url_nor_header(hook: Hook, caplog: pytest.LogCaptureFixture, answers: list[int]) -> None:
    caplog.set_level(logging.DEBUG)
    hook.answers = answers
    run(hook.url, f"X-Token: {SECRET}")
    run(f"http://unknown.invalid/{SECRET}", f"X-Token: {SECRET}")
    assert "webhook" in caplog.text
    assert SECRET not in caplog.text
