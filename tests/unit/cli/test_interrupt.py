"""A stream that one thread reads is ended by another: the page closes a watch so."""

from __future__ import annotations

import http.client
import socket
import threading

import pytest
from finetune_cli.cluster import client as client_module
from finetune_cli.cluster.client import Client
from finetune_cli.cluster.kubeconfig import Settings
from finetune_cli.problem import Exit, Problem

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nfirst\n\r\n"


def test_an_interrupted_stream_ends_and_the_client_calls_nobody_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = Client(Settings(f"http://127.0.0.1:{server.getsockname()[1]}", "team", "here"))
        lines: list[bytes] = []
        first, over = threading.Event(), threading.Event()

        def read() -> None:
            try:
                for line in client.stream("/watch"):
                    lines.append(line)
                    first.set()
            except Exception:
                pass
            over.set()

        threading.Thread(target=read, daemon=True).start()
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(HEAD)
            assert first.wait(10)
            assert not over.is_set()
            client.interrupt()
            assert over.wait(10)
            assert connection.recv(65536) == b""  # the other side sees it at once
    assert lines == [b"first\n"]
    with pytest.raises(Problem, match="interrupted") as caught:
        client.get("/anything")
    assert caught.value.code is Exit.INTERRUPTED


def test_a_stream_that_is_not_connected_yet_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is left at once."""
    connecting, interrupted, over = threading.Event(), threading.Event(), threading.Event()
    caught: list[BaseException] = []

    class Slow(http.client.HTTPConnection):
        def connect(self) -> None:
            connecting.set()
            interrupted.wait(10)
            super().connect()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(client_module, "connect", lambda *_: Slow("127.0.0.1", port))
        client = Client(Settings(f"http://127.0.0.1:{port}", "team", "here"))

        def read() -> None:
            try:
                list(client.stream("/watch"))
            except Exception as error:
                caught.append(error)
            over.set()

        threading.Thread(target=read, daemon=True).start()
        assert connecting.wait(10)
        client.interrupt()
        interrupted.set()
        server.accept()[0].close()
        assert over.wait(10)
    assert len(caught) == 1
