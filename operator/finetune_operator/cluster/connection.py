"""One connection pool to one API server. Plain dictionaries in and out, and a timeout on every call.

Uses the asyncio client of the official package for credentials, their renewal and TLS.
"""

import asyncio
import contextlib
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config

from finetune_operator.cluster.errors import ApiError, NamespaceTerminatingError, message_of, namespace_terminating
from finetune_operator.views.metadata import Raw

TIMEOUT_SECONDS = 20.0
SLOW_SECONDS = 5.0
OVERLOADED = (429, 503, 504)
"""With a slow answer or none, the signs that the API server has too much to do."""
PAGE = 500
Pages = AsyncIterator[tuple[list[Raw], int]]
"""The items of each page of a listing, and the resourceVersion at which it was made."""


class Connection:
    """One connection pool to one API server."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self._overloaded_at = -math.inf
        self.calls: Counter[tuple[str, int]] = Counter()
        """Calls so far, by method and status; 0 is no answer."""

    async def close(self) -> None:
        await self._api.close()

    def calm_seconds(self) -> float:
        """How long ago the API server last was slow, overloaded or silent."""
        return asyncio.get_running_loop().time() - self._overloaded_at

    @contextlib.contextmanager
    def _permit(self, _method: str) -> Iterator[float]:
        """Surrounds a call. Yields how many seconds it may take."""
        yield TIMEOUT_SECONDS

    async def _pages(
        self, path: str, query: dict[str, str], *, accept: str = "application/json", pages: int | None = None
    ) -> Pages:
        """A listing, page by page: only the page at hand is in memory. All its pages have the same resourceVersion."""
        token, count = "", 0
        while count != pages:
            page = await self._call(
                "GET", path, {**query, "limit": str(PAGE), **({"continue": token} if token else {})}, accept=accept
            )
            token, count = page["metadata"].get("continue", ""), count + 1
            listed_at, items = int(page["metadata"]["resourceVersion"]), page.pop("items", None) or []
            del page
            yield items, listed_at
            del items
            if not token:
                return

    async def _list(self, path: str, query: dict[str, str], accept: str = "application/json") -> list[Raw]:
        """A listing that is known to be small."""
        return [raw async for items, _ in self._pages(path, query, accept=accept) for raw in items]

    async def _get(self, path: str, timeout: float = TIMEOUT_SECONDS) -> Raw | None:
        try:
            return await self._call("GET", path, timeout=timeout)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Raw | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: float = TIMEOUT_SECONDS,
    ) -> Raw:
        with self._permit(method) as seconds:
            return await self._send(method, path, query or {}, body, content_type, accept, min(timeout, seconds))

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Raw | None,
        content_type: str,
        accept: str,
        timeout: float,
    ) -> Raw:
        headers = {"Accept": accept, "Content-Type": content_type}
        # Without the body: the client would copy it, value by value, into what it is already.
        verb, url, headers, _, _ = await self._api.param_serialize(
            method, path, header_params=headers, auth_settings=["BearerToken"]
        )
        if query:
            url += "?" + urlencode(query)
        clock = asyncio.get_running_loop().time
        began, overloaded = clock(), True
        try:
            response = await self._api.call_api(verb, url, headers, body, _request_timeout=timeout)
            data = await response.read()
            overloaded = response.status in OVERLOADED or clock() - began > SLOW_SECONDS
            self.calls[method, response.status] += 1
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.calls[method, 0] += 1
            words = f"{type(error).__name__}: {error}".rstrip(": ")
            raise ApiError(0, f"{method} {path}: the API server does not answer ({words})") from error
        finally:
            if overloaded:
                self._overloaded_at = clock()
        if response.status >= 400:
            kind = NamespaceTerminatingError if namespace_terminating(response.status, data) else ApiError
            raise kind(response.status, f"{method} {path}: {message_of(data)}")
        parsed: Any = json.loads(data)
        return dict(parsed)


async def credentials() -> client.Configuration:
    """Those of the operator's pod, else of KUBECONFIG or ~/.kube/config."""
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=settings)
    return settings


def path_to(api_version: str, plural: str, namespace: str = "", name: str = "") -> str:
    root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    inside = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{inside}/{plural}" + (f"/{name}" if name else "")
