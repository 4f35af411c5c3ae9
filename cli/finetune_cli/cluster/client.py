"""A light client of the API server: calls with retries, streams of lines (watches and logs), and connections that
`remote` uses for commands in pods.

A call is tried again after 429, after 500 to 504 if it only reads, and after a connection that broke. A call that
creates something is never sent twice. What was allowed before and is refused is asked for again for some seconds, if it
only reads (`refusals`).
"""

import http.client
import json
import random
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlencode

from finetune_cli.cluster import refusals
from finetune_cli.cluster.connection import CONNECT_SECONDS, connect, path_prefix
from finetune_cli.cluster.credentials import Credentials
from finetune_cli.cluster.errors import ApiError, denied, unreachable
from finetune_cli.cluster.kubeconfig import Settings, load
from finetune_cli.cluster.refusals import Refusals
from finetune_cli.problem import Exit, Problem

TRIES = 5
READ_SECONDS = 30.0
STREAM_SECONDS = 300.0
"""Silence after which a stream is taken for dead."""
CHUNK = 1 << 16
LONGEST_LINE = 4 << 20
"""Bytes of a line that are held at once. An event of a watch has at most 3 MiB."""
BUSY = (429, 500, 502, 503, 504)

Object = dict[str, Any]
T = TypeVar("T")


class Client:
    """Calls to one API server as one user, in one namespace. Without `refusals`, every refusal is believed at once."""

    def __init__(
        self, settings: Settings, credentials: Credentials | None = None, refusals: Refusals | None = None
    ) -> None:
        self.settings = settings
        self.namespace = settings.namespace
        self._credentials = credentials or Credentials(settings)
        self._refusals = refusals
        self._tls: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._streams: set[http.client.HTTPConnection] = set()
        self._interrupted = False

    def another(self) -> "Client":
        """A client of the same user for another thread: a connection serves one thread."""
        return Client(self.settings, self._credentials, self._refusals)

    def get(self, path: str, **query: Any) -> Object:
        """GET. Raises ApiError."""
        return self.call("GET", path, **query)

    def find(self, path: str) -> Object | None:
        """The object, or None if it does not exist."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, path: str, page: int = 250, **query: Any) -> Iterator[Object]:
        """The objects of a list, page by page."""
        token = None
        while True:
            listed = self.get(path, limit=page, **query, **({"continue": token} if token else {}))
            yield from listed.get("items") or ()
            token = listed["metadata"].get("continue")
            if not token:
                return

    def patch(self, path: str, body: Object, kind: str = "application/merge-patch+json", **query: Any) -> Object:
        """PATCH, by default a JSON merge patch."""
        return self.call("PATCH", path, body, kind, **query)

    def delete(self, path: str, **query: Any) -> None:
        """DELETE. It is no error if the object is gone."""
        try:
            self.call("DELETE", path, **query)
        except ApiError as error:
            if error.status != 404:
                raise

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: Any) -> Object:
        """Any call. Raises ApiError with the server's words, or Problem if no server answers."""
        data = None if body is None else json.dumps(body).encode()
        right = refusals.right(path, query) if method == "GET" else ""
        return self.patiently(right, lambda: self._tried(method, path, data, kind, query))

    def patiently(self, right: str, ask: Callable[[], T]) -> T:
        """What `ask` returns. It is called again with new credentials after a 401; and if it only reads, which `right`
        says, after a refusal that may be wrong. Raises what it raises."""
        end, renewed = 0.0, False
        while True:
            try:
                answer = ask()
            except ApiError as error:
                if error.status == 401 and not renewed and self._credentials.renew():
                    renewed = True
                    self.close(forget=True)
                    continue
                doubtful = error.status in refusals.STATUS and self._refusals and self._refusals.doubtful(right)
                end = end or time.monotonic() + refusals.DOUBT_SECONDS
                if not (right and doubtful) or time.monotonic() >= end:
                    raise
                time.sleep(refusals.PAUSE_SECONDS)
            else:
                if right and self._refusals:
                    self._refusals.allowed(right)
                return answer

    def watch(self, path: str, **query: Any) -> Iterator[Object]:
        """The events of a watch until the server ends it."""
        for line in self.stream(path, watch="true", **query):
            yield json.loads(line)

    def stream(self, path: str, timeout: float = STREAM_SECONDS, **query: Any) -> Iterator[bytes]:
        """The lines of an answer as they come. A line without a break at its end is the last line, or a part of a
        line that is too long to hold. Raises ApiError if the server refuses, OSError or HTTPException if the connection
        breaks before the end of the answer."""
        connection, response = self.patiently(refusals.right(path, query), lambda: self._opened(path, timeout, query))
        try:
            yield from _lines(response)
        finally:
            self._end(connection)

    def interrupt(self) -> None:
        """End the streams that other threads read: their reads end or fail, and every later call raises Problem."""
        self._interrupted = True
        for connection in tuple(self._streams):
            if (used := connection.sock) is not None:  # else it is not connected yet, or not any more
                with suppress(OSError):
                    socket.socket.shutdown(used, socket.SHUT_RDWR)

    def dial(self, path: str, **query: Any) -> tuple[socket.socket, str, dict[str, str]]:
        """A connection for another protocol than HTTP: its socket, the target of the request and its headers. Raises
        Problem if no server answers."""
        connection = connect(self.settings, self._trust(), CONNECT_SECONDS)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self.settings, error) from error
        return connection.sock, self._url(path, query), self._headers(None)

    def close(self, forget: bool = False) -> None:
        """Close the connection. `forget`: and the client certificate."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if forget:
            self._tls = None

    def _tried(self, method: str, path: str, data: bytes | None, kind: str, query: Object) -> Object:
        for tries in range(1, TRIES + 1):
            try:
                response, text = self._once(method, path, data, kind, query)
            except (OSError, http.client.HTTPException, zlib.error) as error:
                self.close()
                self._broke()
                refused = isinstance(error, ConnectionRefusedError)
                if tries == TRIES or isinstance(error, ssl.SSLError) or not (refused or method != "POST"):
                    raise unreachable(self.settings, error) from error
                _pause(tries)
                continue
            again = response.status in BUSY and (method == "GET" or response.status == 429)
            if not again or tries == TRIES:
                break
            _pause(tries, response.headers.get("Retry-After"))
        if response.status >= 300:
            raise denied(method, path, response.status, text, self.settings)
        return json.loads(text) if text else {}

    def _opened(
        self, path: str, timeout: float, query: Object
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = connect(self.settings, self._trust(), timeout)
        self._streams.add(connection)
        try:
            self._may_continue()
            connection.request("GET", self._url(path, query), headers=self._headers(None))
            response = connection.getresponse()
            self._may_continue()
            if response.status >= 300:
                raise denied("GET", path, response.status, response.read(), self.settings)
        except BaseException as error:
            self._end(connection, broke=not isinstance(error, ApiError))
            raise
        return connection, response

    def _end(self, connection: http.client.HTTPConnection, broke: bool = True) -> None:
        self._streams.discard(connection)
        connection.close()
        if broke:
            self._broke()

    def _broke(self) -> None:
        if self._refusals:
            self._refusals.broke()

    def _once(
        self, method: str, path: str, data: bytes | None, kind: str, query: Object
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self._may_continue()
        if method == "POST":
            self.close()  # a server may have closed a connection that was idle, and a POST is not sent twice
        if self._connection is None:
            self._connection = connect(self.settings, self._trust(), CONNECT_SECONDS)
            self._connection.connect()
            self._connection.sock.settimeout(READ_SECONDS)
        # A list of many jobs is several megabytes, of which much repeats. The API server compresses what is large.
        headers = {**self._headers(kind if data else None), "Accept-Encoding": "gzip"}
        self._connection.request(method, self._url(path, query), body=data, headers=headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.headers.get("Content-Encoding") == "gzip":
            text = zlib.decompress(text, wbits=zlib.MAX_WBITS | 16)
        if response.will_close:
            self.close()
        return response, text

    def _may_continue(self) -> None:
        if self._interrupted:
            raise Problem("The call was interrupted.", Exit.INTERRUPTED)

    def _trust(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = self._credentials.tls()
        return self._tls

    def _headers(self, kind: str | None) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "kubectl-finetune", **self._credentials.headers()}
        if kind:
            headers["Content-Type"] = kind
        return headers

    def _url(self, path: str, query: Object) -> str:
        asked = urlencode({key: value for key, value in query.items() if value not in (None, "", False)}, doseq=True)
        return f"{path_prefix(self.settings)}{path}" + (f"?{asked}" if asked else "")


def client(context: str | None, namespace: str | None, kubeconfig: str | None = None) -> Client:
    """The client of a context of the kubeconfig."""
    return Client(load(context, namespace, kubeconfig), refusals=Refusals())


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Lines, in constant memory. HTTPResponse.readline is slow, and ends quietly where a connection broke."""
    rest = b""
    while chunk := response.read1(CHUNK):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
        if len(rest) > LONGEST_LINE:
            yield rest
            rest = b""
    if rest:
        yield rest


def _pause(tries: int, asked: str | None = None) -> None:
    seconds = float(asked) if asked and asked.isdecimal() else 0.25 * 2**tries
    time.sleep(min(seconds, 10.0) * random.uniform(0.8, 1.2))
