"""The reward service of PPO: requests, answers and errors, and the cache of scores."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from finetune_api.stages import HttpRewardSpec
from finetune_trainer.errors import AccessDenied, InvalidSpec, Preempted, SourceUnreachable, TrainerError
from finetune_trainer.fetch import retry
from finetune_trainer.run import ignore
from finetune_trainer.stages.ppo.reward_service import RewardClient, ScoreCache

SECRET, TEXT = "s3cr3t-t0ken", "a text of somebody's"


class Service(ThreadingHTTPServer):
    """Answers with the given answers in order, and then repeats the last."""

    def __init__(self, answers: list[tuple[int, Any]]) -> None:
        self.answers, self.asked, self.tokens = answers, [], []  # type: ignore[var-annotated]
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def spec(self) -> HttpRewardSpec:
        return HttpRewardSpec(url=f"http://127.0.0.1:{self.server_address[1]}/score", model="judge")


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        self.server.tokens.append(self.headers.get("Authorization"))
        answers = self.server.answers
        status, content = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def service(*answers: tuple[int, Any]) -> Iterator[Service]:
    with Service(list(answers)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES", (0.0, 0.0))


def test_texts_are_sent_with_the_token_and_scores_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", SECRET)
    with service((200, {"scores": [0.5, -2]})) as server:
        scores = RewardClient(server.spec).score([TEXT, "b"], ignore)
    assert scores == [0.5, -2.0]
    assert server.asked == [{"model": "judge", "messages": [TEXT, "b"]}]
    assert server.tokens == [f"Bearer {SECRET}"]


def test_white_space_around_a_token_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Secret made from a file, or by echo, ends with a line break."""
    monkeypatch.setenv("REWARD_TOKEN", f"{SECRET}\n")
    with service((200, {"scores": [1]})) as server:
        RewardClient(server.spec).score(["a"], ignore)
    assert server.tokens == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("token", [f"{SECRET}\n{SECRET}", f"{SECRET}\u2013"])
def test_the_error_of_an_invalid_token_does_not_contain_it(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", token)
    with pytest.raises(AccessDenied, match=r"the token cannot be sent.*Check the key REWARD_TOKEN") as caught:
        RewardClient(HttpRewardSpec(url="http://judge/score"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("host", ["judge:99999", "[1::2::3]"])
def test_an_invalid_url_is_an_error_before_the_first_request(host: str) -> None:
    with pytest.raises(InvalidSpec, match=r"http\.url: http://.* is not a valid URL: "):
        RewardClient(HttpRewardSpec(url=f"http://{host}/score"))


def test_without_a_token_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    with service((200, {"scores": [1]})) as server:
        RewardClient(server.spec).score(["a"], ignore)
    assert server.tokens == [None]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_to_a_busy_service_is_retried(status: int) -> None:
    with service((status, {}), (200, {"scores": [1]})) as server:
        assert RewardClient(server.spec).score(["a"], ignore) == [1.0]
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "answer", "error", "says"),
    [
        (401, {}, AccessDenied, "answers 401: the token is not accepted. Check the key REWARD_TOKEN"),
        (403, {}, AccessDenied, "answers 403"),
        (404, {}, SourceUnreachable, "answers 404. Check that it is a reward service."),
        (500, {}, SourceUnreachable, "answers 500"),
        (200, b"<html>" + TEXT.encode(), InvalidSpec, "answered no JSON, but nothing"),
        (200, {"rewards": [TEXT]}, InvalidSpec, "answered an object with 'rewards', and no scores"),
        (200, [TEXT], InvalidSpec, "answered a list, and no scores"),
        (200, {"scores": TEXT}, InvalidSpec, "its scores are a text"),
        (200, {"scores": [1.0, 2.0]}, InvalidSpec, "answered 2 scores for 1 texts"),
        (200, {"scores": [TEXT]}, InvalidSpec, "score 1 of 1 is a text"),
        (200, {"scores": [None]}, InvalidSpec, "score 1 of 1 is null"),
        (200, {"scores": [float("nan")]}, InvalidSpec, "score 1 of 1 is nan"),
    ],
)
def test_errors_name_the_invalid_answer_without_texts(
    status: int, answer: Any, error: type[TrainerError], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", SECRET)
    with service((status, answer)) as server, pytest.raises(error) as caught:
        RewardClient(server.spec).score([TEXT], ignore)
    message = str(caught.value)
    assert says in message
    assert SECRET not in message
    assert TEXT not in message


def test_an_absent_service_is_unreachable() -> None:
    with service((200, {})) as server:
        spec = server.spec
    with pytest.raises(SourceUnreachable, match="cannot be reached"):
        RewardClient(spec).score(["a"], ignore)


def test_a_stop_ends_the_pause_before_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES", (60.0,))

    def check_stop() -> None:
        if server.asked:
            raise Preempted("stop")

    with service((503, {})) as server, pytest.raises(Preempted):
        RewardClient(server.spec).score(["a"], check_stop)
    assert len(server.asked) == 1


def test_scores_are_cached_until_a_checkpoint_has_them(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def ask(texts: Any) -> list[float]:
        asked.append(list(texts))
        return [float(len(text)) for text in texts]

    first, later = ScoreCache(tmp_path, ["url", "model"]), ScoreCache(tmp_path, ["url", "model"])
    assert first.get(8, ["a", "bb"], ask) == [1.0, 2.0]
    assert later.get(8, ["a", "bb"], ask) == [1.0, 2.0]
    assert asked == [["a", "bb"]]

    later.get(16, ["ccc"], ask)
    later.drop(16)  # the rollout of step 16 is not in it yet
    assert later.get(16, ["ccc"], ask) == [3.0]
    assert asked == [["a", "bb"], ["ccc"]]
    assert [file.name[:8] for file in (tmp_path / "scores").iterdir()] == ["00000016"]


@pytest.mark.parametrize("other", [("other", "model"), ("url", "other")])
def test_services_have_separate_caches(tmp_path: Path, other: tuple[str, str]) -> None:
    ScoreCache(tmp_path, ["url", "model"]).get(0, ["a"], lambda _: [1.0])
    assert ScoreCache(tmp_path, other).get(0, ["a"], lambda _: [2.0]) == [2.0]


def test_a_damaged_cache_file_is_replaced(tmp_path: Path) -> None:
    ScoreCache(tmp_path, []).get(0, ["a"], lambda _: [1.0])
    (file,) = (tmp_path / "scores").iterdir()
    file.write_text('{"scores": [1.')
    assert ScoreCache(tmp_path, []).get(0, ["a"], lambda _: [2.0]) == [2.0]


@contextmanager
def silent() -> Iterator[tuple[HttpRewardSpec, Event]]:
    """A service that accepts a request and never answers. The event is set after the request."""
    asked = Event()

    def take() -> None:
        connection, _ = listening.accept()
        connection.recv(1)
        asked.set()
        closed.wait()
        connection.close()

    closed = Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=take, daemon=True)
        thread.start()
        try:
            yield HttpRewardSpec(url=f"http://127.0.0.1:{listening.getsockname()[1]}", model="judge"), asked
        finally:
            closed.set()
            thread.join()


def test_a_stop_ends_the_wait_for_an_answer() -> None:
    def check_stop() -> None:
        if asked.is_set():
            raise Preempted("stop")

    with silent() as (spec, asked), pytest.raises(Preempted):
        RewardClient(spec.model_copy(update={"timeout_seconds": 3600})).score(["a"], check_stop)


def test_no_retry_begins_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs are idle meanwhile."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 100.0
        return now

    monkeypatch.setattr(time, "monotonic", clock)
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1
        raise retry.TransientError("away")

    monkeypatch.setattr(retry, "PAUSES", (0.0,) * 9)
    with pytest.raises(SourceUnreachable, match="away"):
        retry.with_retries(ask, ignore, until=550.0)
    assert 1 < asked < 5
