"""What a rank wrote to stderr last. Libraries in C tell nobody else why they end the process: bitsandbytes prints the
CUDA error and calls exit(1), NCCL's watchdog prints it and aborts.

`processes` gives each rank a pipe for stdout and for stderr, and a thread here copies each to the launcher's own as it
comes, without the values of secrets.
"""

import codecs
import contextlib
import os
import threading
from typing import IO

from finetune_trainer.runtime.redaction import Redactor, secrets

LENGTH = 16 << 10
"""Characters that are kept: an error message and the C++ stack after it."""
WAIT = 1.0
"""Seconds that the copying of a dead rank's last output may take. Its data loaders may keep the pipe open."""
STDOUT, STDERR = 1, 2


class LastWords:
    """The end of a stream, which is copied to the file descriptor ``to``."""

    def __init__(self, stream: IO[bytes] | None, to: int = STDERR) -> None:
        self._stream, self._to, self._tail = stream, to, ""
        self._redactor = Redactor(secrets(os.environ))
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)
        if stream is not None:
            self._thread.start()

    def text(self) -> str:
        """The last words of a rank that has ended."""
        self.join(WAIT)
        return self._tail

    def join(self, seconds: float) -> None:
        """Wait until all is copied."""
        if self._stream is not None:
            self._thread.join(max(0.0, seconds))

    def _copy(self) -> None:
        assert self._stream is not None
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        while chunk := os.read(self._stream.fileno(), LENGTH):
            self._write(self._redactor.feed(decoder.decode(chunk)))
        self._write(self._redactor.feed(decoder.decode(b"", final=True)) + self._redactor.end())

    def _write(self, text: str) -> None:
        self._tail = (self._tail + text)[-LENGTH:]
        rest = text.encode()
        # The rank must continue, even if nobody reads the launcher's output any more.
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._to, rest) :]
