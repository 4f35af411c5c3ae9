"""Server-sent events: an answer that continues until the browser leaves, and ends at once then."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

QUIET_SECONDS = 15.0
"""Proxies end connections that are silent for long."""


class EventStream(Response):
    """Sends what a generator yields. The generator is closed when the browser has gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str]) -> None:
        super().__init__(b"")
        del self.headers["content-length"]
        self.headers["X-Accel-Buffering"] = "no"
        self._events = events

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending

    async def _send(self, send: Send) -> None:
        pending: asyncio.Future[str] | None = None
        try:
            while True:
                pending = pending or asyncio.ensure_future(anext(self._events, ""))
                done, _ = await asyncio.wait((pending,), timeout=QUIET_SECONDS)
                text = pending.result() if done else ": \n\n"
                if done:
                    pending = None
                await send({"type": "http.response.body", "body": text.encode(), "more_body": bool(text)})
                if not text:
                    return
        finally:
            if pending is not None:
                pending.cancel()
                with suppress(asyncio.CancelledError):
                    await pending
            await self._events.aclose()  # type: ignore[attr-defined]


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(name: str, data: str) -> str:
    """An event. Its data may have several lines."""
    lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
    return f"event: {name}\n{lines}\n"
