"""A company's network on loopback: servers with names and a private certificate authority, behind a proxy.

Only the proxy knows the names, as in a network without public DNS: whoever reaches a server went through the proxy and
trusts the authority. Used by the trainer's tests.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
UNKNOWN = b"HTTP/1.1 502 Unknown host\r\nContent-Length: 0\r\n\r\n"
CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]


class PrivateNetwork:
    """`proxy` is what HTTPS_PROXY has to be, and `ca` the file with the certificate of the authority."""

    def __init__(self, folder: Path) -> None:
        self.connected: list[str] = []
        """The hosts that the proxy was asked for."""
        self._folder, self._hosts, self._listening = folder, dict[str, int](), list[socket.socket]()
        self.ca = self._certificate("ca", "basicConstraints=critical,CA:TRUE")
        self.proxy = f"http://127.0.0.1:{self._serve(self._connect)}"

    def add(self, host: str, address: str) -> str:
        """A server with this name, in front of the server at an http:// address. Returns its own address."""
        signer = ["-CA", str(self.ca), "-CAkey", str(self.ca.with_suffix(".key"))]
        certificate = self._certificate(host, f"subjectAltName=DNS:{host}", *signer)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        port = urlsplit(address).port
        assert port

        def answer(client: socket.socket) -> None:
            with context.wrap_socket(client, server_side=True) as encrypted:
                _join(encrypted, socket.create_connection(("127.0.0.1", port)))

        self._hosts[host] = self._serve(answer)
        return f"https://{host}"

    def close(self) -> None:
        for listening in self._listening:
            listening.close()

    def _connect(self, client: socket.socket) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            if not (part := client.recv(1)):
                return
            asked += part
        host = asked.split()[1].decode().partition(":")[0]
        self.connected.append(host)
        if not asked.startswith(b"CONNECT ") or host not in self._hosts:
            client.sendall(UNKNOWN)
            return
        client.sendall(CONNECTED)
        _join(client, socket.create_connection(("127.0.0.1", self._hosts[host])))

    def _serve(self, answer: Callable[[socket.socket], None]) -> int:
        """A thread for each connection. Returns the port."""
        listening = socket.create_server(("127.0.0.1", 0))
        self._listening.append(listening)

        def one(client: socket.socket) -> None:
            # A client that ends in the middle of a transfer, or does not trust the certificate, is not our failure.
            with contextlib.suppress(OSError), client:
                answer(client)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=one, args=[listening.accept()[0]], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return int(listening.getsockname()[1])

    def _certificate(self, name: str, extension: str, *signer: str) -> Path:
        certificate = self._folder / f"{name}.crt"
        files = ["-keyout", str(certificate.with_suffix(".key")), "-out", str(certificate)]
        what = ["-subj", f"/CN={name}", "-addext", extension, *signer]
        done = subprocess.run(["openssl", "req", "-x509", *CURVE, *files, *what], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return certificate


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass on what each side sends, until one of them ends."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                target.sendall(part)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    with other:
        back = threading.Thread(target=pump, args=[other, one], daemon=True)
        back.start()
        pump(one, other)
        back.join()
