"""The one call that the trainer makes to Kubernetes: apply what it owns of its job's status, and understand the answer.

Standard library alone, straight to the API server (no proxy), token and CA read anew for each call because the kubelet
renews them. Never raises: an API server that doesn't answer is no reason to stop a training.
"""

import http.client
import json
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from finetune_api.contract import AttemptFacts
from finetune_api.job import API_VERSION, GROUP, KIND, PLURAL, VERSION

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
FIELD_MANAGER = "finetune-trainer"
TIMEOUT = 5.0
NOT_CURRENT = "not the current attempt"
"""What the chart's admission policy says to the pod of an earlier attempt."""

T = TypeVar("T")


class Answer(Enum):
    """What an apply tells about the run that made it."""

    ACCEPTED = "accepted"
    DELETING = "the job is being deleted"
    DELETED = "the job was deleted"
    REPLACED = "the job was deleted and made again"
    NOT_CURRENT = "a newer attempt runs"
    REFUSED = "refused"
    """By access rights, validation and the like: says nothing about who wants the result."""
    UNREACHABLE = "no answer"


NOBODY_WANTS_IT = (Answer.DELETING, Answer.DELETED, Answer.REPLACED, Answer.NOT_CURRENT)
"""After SIGTERM: no save, end at once."""
SUPERSEDED = (Answer.REPLACED, Answer.NOT_CURRENT)
"""At any time: somebody else does this job."""


@dataclass(frozen=True)
class ApiServer:
    """Where status goes, and with which credentials."""

    url: str
    """https://host:port"""
    credentials: Path
    """Folder with token and ca.crt."""

    @staticmethod
    def of_pod() -> "ApiServer | None":
        """None where no API server can be asked: outside a cluster, or in a pod without a token."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (SERVICE_ACCOUNT / "token").exists():
            return None
        return ApiServer(f"https://{f'[{host}]' if ':' in host else host}:{port}", SERVICE_ACCOUNT)

    def apply(self, facts: AttemptFacts, status: dict[str, Any], timeout: float = TIMEOUT) -> tuple[Answer, str]:
        """Server-side apply of all that the trainer owns: what `status` lacks, it gives up. The text is for the log."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{facts.namespace}/{PLURAL}/{facts.name}/status"
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": facts.name, "namespace": facts.namespace, "uid": facts.uid},
            "status": status,
        }
        try:
            code, answer = self._patch(f"{path}?fieldManager={FIELD_MANAGER}&force=true", body, timeout)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Answer.UNREACHABLE, f"{type(error).__name__}: {error}"
        return understand(code, answer, facts)

    def _patch(self, path: str, body: dict[str, Any], timeout: float) -> tuple[int, dict[str, Any]]:
        where = urlsplit(self.url)
        assert where.hostname
        trust = ssl.create_default_context(cafile=str(self.credentials / "ca.crt"))
        # Many clusters' certificates lack extensions that Python 3.13 asks for by default.
        trust.verify_flags &= ~ssl.VERIFY_X509_STRICT
        connection = http.client.HTTPSConnection(where.hostname, where.port, timeout=timeout, context=trust)
        try:
            headers = {
                "Authorization": f"Bearer {(self.credentials / 'token').read_text().strip()}",
                "Content-Type": "application/apply-patch+yaml",
                "Accept": "application/json",
            }
            connection.request("PATCH", path, json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        answer = json.loads(text)
        return response.status, answer if isinstance(answer, dict) else {}


def understand(code: int, answer: dict[str, Any], facts: AttemptFacts) -> tuple[Answer, str]:
    """An HTTP answer as an `Answer`."""
    if code < 300:
        deleting = (answer.get("metadata") or {}).get("deletionTimestamp")
        return (Answer.DELETING if deleting else Answer.ACCEPTED), ""
    message = str(answer.get("message", ""))
    said = f"{code}: {message}"
    if NOT_CURRENT in message.lower():
        return Answer.NOT_CURRENT, said
    # A 404 without our name is a path that the API server doesn't serve (yet).
    if code == 404 and (answer.get("details") or {}).get("name") == facts.name:
        return Answer.DELETED, said
    # Forced, so there is nothing else to conflict about.
    if code == 409 and "uid" in message.lower():
        return Answer.REPLACED, said
    return (Answer.UNREACHABLE if code >= 500 or code == 429 else Answer.REFUSED), said


def within(seconds: float, call: Callable[[], T], otherwise: T) -> T:
    """`call()`, but no longer than this: a socket's time-out bounds each step of a call, not the sum."""
    answer: list[T] = []
    thread = Thread(target=lambda: answer.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else otherwise
