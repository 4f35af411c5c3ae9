"""The API server calls of this package, with the standard library alone.

Called by cluster.py and the `status` command. The calls ignore proxies of the environment, because the server is on
this machine.
"""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

from tests.cluster.state import State


def call(
    state: State, server: str, method: str, path: str, body: Any = None, content_type: str = "application/json"
) -> tuple[int, Any]:
    """The status code and the decoded answer. The code is 0 if the server cannot be reached."""
    trust = ssl.create_default_context(cafile=str(state.pki / "ca.crt"))
    trust.load_cert_chain(state.pki / "admin.crt", state.pki / "admin.key")
    address = urlsplit(server)
    connection = http.client.HTTPSConnection(str(address.hostname), address.port, timeout=5, context=trust)
    try:
        connection.request(
            method,
            path,
            None if body is None else json.dumps(body),
            {"Content-Type": content_type, "Accept": "application/json"},
        )
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    return response.status, json.loads(text) if response.headers.get_content_type() == "application/json" else text


def answers(host: str, port: int, path: str) -> bool:
    """Whether a health check in plain HTTP succeeds."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
