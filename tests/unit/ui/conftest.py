"""The page over a small API server, in this process; and, for streams, behind a real port."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from finetune_cli.cluster.kubeconfig import Settings as Server
from finetune_ui.app import Page, create
from finetune_ui.settings import Settings
from starlette.testclient import TestClient

from tests.unit.ui.api_server import ApiServer, served

ADDRESS = "https://page.example"
Browser = Callable[..., TestClient]


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with served() as server:
        yield server


@pytest.fixture
def settings(api: ApiServer) -> Settings:
    return Settings(Server(api.url, "default", "in-cluster"))


@pytest.fixture
def page(settings: Settings) -> Iterator[Page]:
    made = create(settings)
    yield made
    made.state.ui.close()


@pytest.fixture
def browser(page: Page) -> Browser:
    """A browser of a user: its token, or an empty text for nobody."""

    def opened(token: str = "token-of-a") -> TestClient:
        client = TestClient(page, base_url=ADDRESS, follow_redirects=False, raise_server_exceptions=False)
        if token:
            answer = log_in(client, token)
            assert answer.status_code == 303, answer.text
        return client

    return opened


@pytest.fixture
def address(page: Page) -> Iterator[str]:
    """The page behind a port, for answers that do not end."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(page, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def log_in(client: TestClient, token: str, **fields: str) -> Any:
    return client.post("/login", data={"csrf": csrf(client), "token": token, **fields})


def csrf(client: TestClient, path: str = "/login") -> str:
    """What forms of a page carry."""
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', client.get(path).text)
    assert found is not None
    return found[1]
