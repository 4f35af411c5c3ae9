"""What every answer has, and what no request may: headers against scripts of others, and a limit of the size.

Plain ASGI, so that streams pass it as they come.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_ui.texts import text

BODY_BYTES = 1 << 20
"""Most bytes of a form. A FineTuneJob has at most some ten thousand."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SAFE = ("GET", "HEAD", "OPTIONS")


class TooLarge(Exception):
    """The body of a request exceeds the limit."""


class Guard:
    """Adds the headers, refuses large bodies, and refuses changes that another site asks for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = False

        async def guarded(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                sent = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers, size = Headers(scope=scope), 0
        if scope["method"] not in SAFE and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            await _plain(guarded, 403, text("errors.other_site"))
            return

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > BODY_BYTES:
                raise TooLarge
            return message

        try:
            declared = headers.get("content-length", "0")
            if not declared.isdecimal() or int(declared) > BODY_BYTES:
                raise TooLarge
            await self._app(scope, counted, guarded)
        except TooLarge:
            if not sent:
                await _plain(guarded, 413, text("errors.large"))
        except Exception:
            if not sent:  # else it is logged, and the browser has its answer
                raise


async def _plain(send: Send, status: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})
