"""HTTP connections to the API server, through a proxy if one is configured.

Only the standard library is used, because it starts fast.
"""

import http.client
import os
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from finetune_cli.cluster.kubeconfig import Settings
from finetune_cli.problem import Problem

CONNECT_SECONDS = 10.0


class _NamedTls(http.client.HTTPSConnection):
    """TLS whose certificate is for another name than the host's (tls-server-name of the kubeconfig)."""

    server_name: str | None = None

    def connect(self) -> None:
        if not self.server_name:
            return super().connect()
        http.client.HTTPConnection.connect(self)
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self.server_name)  # type: ignore[attr-defined]
        return None


def connect(settings: Settings, tls: ssl.SSLContext, timeout: float) -> http.client.HTTPConnection:
    """A new connection; it is opened by the first request."""
    server = urlsplit(settings.server)
    if server.hostname is None:
        raise Problem(f"The kubeconfig names the server {settings.server}, which is no URL.")
    secure = server.scheme == "https"
    proxy = proxy_of(settings, os.environ)
    port = server.port or (443 if secure else 80)
    first = (proxy.hostname or "", proxy.port or 3128) if proxy else (server.hostname, port)
    connection: http.client.HTTPConnection
    if secure:
        named = _NamedTls(*first, timeout=timeout, context=tls)
        named.server_name = settings.cluster.get("tls-server-name")
        connection = named
    else:
        connection = http.client.HTTPConnection(*first, timeout=timeout)
    if proxy:
        connection.set_tunnel(server.hostname, port, headers=_proxy_headers(proxy))
    return connection


def path_prefix(settings: Settings) -> str:
    """The part of the server's URL before /api, as Rancher has it."""
    return urlsplit(settings.server).path.rstrip("/")


def proxy_of(settings: Settings, environment: Mapping[str, str]) -> SplitResult | None:
    """The proxy of the kubeconfig, or of the environment."""
    server = urlsplit(settings.server)
    text = settings.cluster.get("proxy-url")
    if not text:
        names = (f"{server.scheme}_proxy", f"{server.scheme}_proxy".upper())
        text = next((environment[name] for name in names if environment.get(name)), None)
        if text and _bypassed(server.hostname or "", environment.get("no_proxy") or environment.get("NO_PROXY") or ""):
            return None
    if not text:
        return None
    proxy = urlsplit(text if "://" in text else f"http://{text}")
    if proxy.scheme != "http":
        raise Problem(f"The proxy {proxy.scheme}://{proxy.hostname} is not supported: use a proxy with http://")
    return proxy


def _bypassed(host: str, exceptions: str) -> bool:
    import ipaddress

    for entry in (part.strip() for part in exceptions.split(",")):
        if not entry:
            continue
        if "/" in entry:
            try:
                if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                    return True
            except ValueError:
                continue
        elif entry == "*" or host == entry.lstrip(".") or host.endswith("." + entry.lstrip(".")):
            return True
    return False


def _proxy_headers(proxy: SplitResult) -> dict[str, Any]:
    if not proxy.username:
        return {}
    import base64

    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
