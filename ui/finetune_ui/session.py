"""Who a request comes from: the token of a proxy's header, or that of an encrypted cookie.

The page keeps no sessions. The cookie is the session, so a restart with the same key loses none, and nothing of a user
stays behind. The token is never logged, and never part of an address or a page. Other modules know it by its hash.
"""

import hashlib
import hmac
import json
import secrets
import threading
import zlib
from dataclasses import dataclass, field, replace

from cryptography.fernet import Fernet, InvalidToken
from finetune_cli.cluster.client import Client
from finetune_cli.cluster.credentials import Credentials
from finetune_cli.cluster.kubeconfig import Settings as Server
from finetune_cli.cluster.refusals import Refusals
from finetune_cli.problem import Exit, Problem
from starlette.requests import HTTPConnection
from starlette.responses import Response

from finetune_ui.settings import Settings
from finetune_ui.texts import text

SECONDS = 12 * 3600
"""How long a cookie is accepted."""
COOKIE_BYTES = 3900
"""Browsers drop longer cookies."""
LAPTOP = "laptop"


@dataclass(frozen=True)
class User:
    """Somebody, and how they are known to the API server."""

    key: str
    """Hash of the token. Equal keys have equal rights."""
    name: str
    server: Server = field(repr=False)
    credentials: Credentials = field(repr=False)

    def client(self, namespace: str = "", patient: bool = True) -> Client:
        """A client for one thread. A patient client does not believe at once that what was allowed is refused."""
        client = Client(self.server, self.credentials, Refusals() if patient else None)
        client.namespace = namespace or client.namespace
        return client


class Sessions:
    """Makes and reads the cookies, and the tokens against forged forms. Raises Problem for a key that is no key."""

    def __init__(self, settings: Settings) -> None:
        key = settings.cookie_key or Fernet.generate_key()
        try:
            self._box = Fernet(key)
        except ValueError as error:
            raise Problem(text("login.no_key")) from error
        self._secret = hashlib.sha256(b"csrf" + key).digest()
        self._settings = settings
        self._laptop = User(LAPTOP, settings.server.context, settings.server, Credentials(settings.server))
        self._once: str | None = secrets.token_urlsafe(32) if settings.laptop else None
        self._lock = threading.Lock()

    @property
    def cookie(self) -> str:
        """The name of the session's cookie."""
        return f"{self._settings.cookie_prefix}session"

    @property
    def form_cookie(self) -> str:
        """The name of the cookie that forms are bound to."""
        return f"{self._settings.cookie_prefix}form"

    def user(self, request: HTTPConnection) -> User | None:
        """The user of a request. None: nobody, or a cookie that has expired or was made with another key."""
        if (header := self._settings.token_header) and (value := request.headers.get(header)):
            return self.of_token(value.removeprefix("Bearer ").strip())
        content = self._opened(request.cookies.get(self.cookie, ""))
        if content is None:
            return None
        if self._settings.laptop:
            return self._laptop if content.get("laptop") else None
        return self.of_token(content["token"], content.get("name", "")) if content.get("token") else None

    def of_token(self, token: str, name: str = "") -> User:
        """The user with this token. Whether the API server knows the token is not asked here."""
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise Problem(text("login.no_token"), Exit.DENIED)
        server = replace(self._settings.server, user={"token": token})
        return User(hashlib.sha256(token.encode()).hexdigest(), name, server, Credentials(server))

    def log_in(self, response: Response, user: User) -> None:
        """Put the user's token into the cookie. Raises Problem if no cookie can hold it."""
        content = {"laptop": True} if self._settings.laptop else {"token": user.server.user["token"], "name": user.name}
        value = self._box.encrypt(zlib.compress(json.dumps(content).encode())).decode()
        if len(value) > COOKIE_BYTES:
            raise Problem(text("login.long_token"))
        self._set(response, self.cookie, value, SECONDS)

    def log_out(self, response: Response) -> None:
        """Remove the cookie."""
        self._set(response, self.cookie, "", 0)

    def one_time_key(self) -> str:
        """The key for the address that a laptop opens."""
        return self._once or ""

    def enter(self, key: str) -> User | None:
        """The user of the laptop, for the one-time key, once."""
        with self._lock:
            if self._once is None or not hmac.compare_digest(self._once.encode(), key.encode()):
                return None
            self._once = None
            return self._laptop

    def form_token(self, request: HTTPConnection) -> str:
        """What the forms of this browser carry. The cookie behind it is set by `remember`."""
        nonce: str = getattr(request.state, "nonce", "") or request.cookies.get(self.form_cookie, "")
        if not nonce:
            nonce = request.state.nonce = secrets.token_urlsafe(24)
        return hmac.new(self._secret, nonce.encode(), hashlib.sha256).hexdigest()

    def remember(self, request: HTTPConnection, response: Response) -> None:
        """Set the cookie of the forms if this request made it."""
        if nonce := getattr(request.state, "nonce", ""):
            self._set(response, self.form_cookie, nonce, None)

    def is_own_form(self, request: HTTPConnection, token: str) -> bool:
        """Whether a form comes from a page of ours in the same browser."""
        nonce = request.cookies.get(self.form_cookie, "")
        wanted = hmac.new(self._secret, nonce.encode(), hashlib.sha256).hexdigest()
        return bool(nonce) and hmac.compare_digest(wanted.encode(), token.encode())

    def _opened(self, value: str) -> dict[str, str] | None:
        try:
            content = json.loads(zlib.decompress(self._box.decrypt(value.encode(), ttl=SECONDS)))
        except (InvalidToken, ValueError, zlib.error):
            return None
        return content if isinstance(content, dict) else None

    def _set(self, response: Response, name: str, value: str, seconds: int | None) -> None:
        response.set_cookie(
            name, value, max_age=seconds, path="/", secure=self._settings.secure, httponly=True, samesite="strict"
        )
