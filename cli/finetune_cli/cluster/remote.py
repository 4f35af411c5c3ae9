"""A command in a container of a pod, over a WebSocket as `kubectl exec` does: binary safe, in constant memory.

Each message begins with the number of its channel. The last message is on the channel for errors and says how the
command ended. A connection that ends before it has broken, whatever came until then.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from finetune_cli.cluster.client import Client
from finetune_cli.cluster.errors import denied
from finetune_cli.cluster.refusals import right

PROTOCOL = "v5.channel.k8s.io"
"""Kubernetes 1.30 and newer. Earlier versions of the protocol cannot end the standard input."""
STDIN, STDOUT, STDERR, ENDED, CLOSE = 0, 1, 2, 3, 255
PART = 1 << 15
PING_SECONDS = 15.0
"""Silence after which the server is asked whether it is there. Proxies end connections that are silent for long."""
SILENCE_SECONDS = 90.0
"""Silence, also of answers to those questions, after which the connection is taken for broken."""
WORDS = 4096
"""Bytes of the standard error that are kept: the last."""


class Broken(OSError):
    """The connection ended before the command did."""


class CommandFailed(Exception):
    """The command ended with another exit code than 0. Its message is the end of the standard error."""

    def __init__(self, code: int | None, words: str) -> None:
        super().__init__(words)
        self.code = code


class RemoteCommand:
    """A command that runs. Use it in a `with` block; it ends when the block ends. Raises ApiError if the server refuses
    it, Problem if no server answers, and Broken."""

    def __init__(self, client: Client, pod: str, container: str, command: Sequence[str], stdin: bool = False) -> None:
        import websocket

        self._errors = websocket
        self._stderr = b""
        path = f"{pod}/exec"
        flags = {"stdin": "true" if stdin else None, "stdout": "true", "stderr": "true"}
        query = {"container": container, "command": list(command), **flags}
        self._stream: Any = client.patiently(right(path, {}), lambda: self._opened(client, path, query))
        self._stream.settimeout(PING_SECONDS)

    def _opened(self, client: Client, path: str, query: dict[str, Any]) -> Any:
        sock, target, headers = client.dial(path, **query)
        stream = self._errors.WebSocket(skip_utf8_validation=True)
        try:
            stream.connect(
                f"ws://{urlsplit(client.settings.server).netloc}{target}",
                socket=sock,
                header=headers,
                subprotocols=[PROTOCOL],
                suppress_origin=True,
                redirect_limit=0,
            )
        except self._errors.WebSocketBadStatusException as error:
            raise denied("GET", path, error.status_code, error.resp_body or b"", client.settings) from error
        except (self._errors.WebSocketException, OSError) as error:
            raise Broken(f"no connection to {path.removesuffix('/exec')}: {error}") from error
        return stream

    def __enter__(self) -> "RemoteCommand":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.shutdown()

    def write(self, data: bytes) -> None:
        """Send to the standard input."""
        for at in range(0, len(data), PART):
            self._send(bytes([STDIN]) + data[at : at + PART])

    def end_input(self) -> None:
        """End the standard input."""
        self._send(bytes([CLOSE, STDIN]))

    def output(self) -> Iterator[bytes]:
        """The standard output in parts, as they come, until the command has ended. Raises CommandFailed and Broken."""
        silent = 0.0
        while True:
            try:
                opcode, frame = self._stream.recv_data_frame(control_frame=True)
            except self._errors.WebSocketTimeoutException:
                silent += PING_SECONDS
                if silent >= SILENCE_SECONDS:
                    raise Broken(f"the connection was silent for {silent:.0f} seconds") from None
                self._ping()
                continue
            except (self._errors.WebSocketException, OSError) as error:
                raise Broken(str(error) or type(error).__name__) from error
            silent = 0.0
            if opcode == self._errors.ABNF.OPCODE_CLOSE:
                raise Broken("the server closed the connection before the command ended")
            if opcode != self._errors.ABNF.OPCODE_BINARY or not frame.data:
                continue
            channel, data = frame.data[0], frame.data[1:]
            if channel == STDOUT and data:
                yield data
            elif channel == STDERR:
                self._stderr = (self._stderr + data)[-WORDS:]
            elif channel == ENDED:
                self._end(data)
                return

    def lines(self) -> Iterator[bytes]:
        """The standard output in lines, without their ends."""
        rest = b""
        for part in self.output():
            *whole, rest = (rest + part).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def _end(self, data: bytes) -> None:
        try:
            status: dict[str, Any] = json.loads(data)
        except ValueError:
            raise Broken(f"the server ended the command without its status: {data[:200]!r}") from None
        if status.get("status") == "Success":
            return
        causes = (status.get("details") or {}).get("causes") or ()
        codes = [cause["message"] for cause in causes if cause.get("reason") == "ExitCode"]
        words = self._stderr.decode(errors="replace").strip()
        raise CommandFailed(
            int(codes[0]) if codes else None, words or str(status.get("message") or "it gave no reason")
        )

    def _send(self, data: bytes) -> None:
        try:
            self._stream.send_binary(data)
        except (self._errors.WebSocketException, OSError) as error:
            raise Broken(str(error) or type(error).__name__) from error

    def _ping(self) -> None:
        try:
            self._stream.ping()
        except (self._errors.WebSocketException, OSError) as error:
            raise Broken(str(error) or type(error).__name__) from error
