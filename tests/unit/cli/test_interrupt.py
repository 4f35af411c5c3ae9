"""A stream that one thread reads is ended by another: the page closes a watch so."""

from __future__ import annotations

import socket
import threading

import pytest
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
