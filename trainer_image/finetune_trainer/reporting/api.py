"""The trainer's only call to Kubernetes: a server-side apply of the job's status, and what its answer means.

Uses the standard library alone and connects to the API server without a proxy. Reads token and CA for each call,
because the kubelet renews them. Never raises: training does not need the API server.
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
"""Part of the message with which the chart's admission policy denies a pod of an earlier attempt."""
CURVES_UNKNOWN = ".status.progress.curves: field not declared in schema"
"""Part of the message with which an API server whose CRD was rolled back refuses the whole status."""

T = TypeVar("T")


class Answer(Enum):
    """What the API server's answer to an apply means for this run."""

    ACCEPTED = "accepted"
    KEEP = "the job is to end with what it has"
    """Accepted, and the answer has spec.stop: the user wants the artifact now."""
    DELETING = "the job is being deleted"
    DELETED = "the job was deleted"
    REPLACED = "the job was deleted and made again"
    NOT_CURRENT = "a newer attempt runs"
    REFUSED = "refused"
    """By validation and the like. Whether anybody wants the result stays unknown."""
    FORBIDDEN = "not allowed"
    """By access rights, or for now: an API server that has just started refuses what it allows some seconds later."""
    UNREACHABLE = "no answer"


WRITTEN = (Answer.ACCEPTED, Answer.KEEP, Answer.DELETING)
"""Answers after which the status is written."""
RESULT_UNWANTED = (Answer.DELETING, Answer.DELETED, Answer.REPLACED, Answer.NOT_CURRENT)
"""Answers after which a run that received SIGTERM ends at once, without a save."""
FOR_NOW = (Answer.UNREACHABLE, Answer.FORBIDDEN)
"""Answers that may be others some seconds later."""
SUPERSEDED = (Answer.REPLACED, Answer.NOT_CURRENT)
"""Answers after which a run ends at any time: another run does this job."""


@dataclass(frozen=True)
class ApiServer:
    """The address of the API server, and the credentials for it."""

    url: str
    """https://host:port"""
    credentials: Path
    """Directory with token and ca.crt."""

    @staticmethod
    def of_pod() -> "ApiServer | None":
        """The API server of this pod's cluster; None outside of a cluster, or in a pod without a token."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (SERVICE_ACCOUNT / "token").exists():
            return None
        return ApiServer(f"https://{f'[{host}]' if ':' in host else host}:{port}", SERVICE_ACCOUNT)

    def apply(self, attempt: AttemptFacts, status: dict[str, Any], timeout: float = TIMEOUT) -> tuple[Answer, str]:
        """Apply all fields of status that the trainer owns: a field that ``status`` lacks is removed. Returns the
        meaning of the answer, and details for the log."""
        base = f"/apis/{GROUP}/{VERSION}/namespaces/{attempt.namespace}/{PLURAL}/{attempt.name}/status"
        path = f"{base}?fieldManager={FIELD_MANAGER}&force=true"
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": attempt.name, "namespace": attempt.namespace, "uid": attempt.uid},
            "status": status,
        }
        try:
            code, answer = self._patch(path, body, timeout)
            if code >= 400 and CURVES_UNKNOWN in str(answer.get("message")):
                progress = {name: value for name, value in status["progress"].items() if name != "curves"}
                code, answer = self._patch(path, {**body, "status": {**status, "progress": progress}}, timeout)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Answer.UNREACHABLE, f"{type(error).__name__}: {error}"
        return interpret(code, answer, attempt)

    def _patch(self, path: str, body: dict[str, Any], timeout: float) -> tuple[int, dict[str, Any]]:
        address = urlsplit(self.url)
        assert address.hostname
        tls = ssl.create_default_context(cafile=str(self.credentials / "ca.crt"))
        # The certificates of many clusters lack extensions that Python 3.13 requires by default.
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        connection = http.client.HTTPSConnection(address.hostname, address.port, timeout=timeout, context=tls)
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


def interpret(code: int, answer: dict[str, Any], attempt: AttemptFacts) -> tuple[Answer, str]:
    """The `Answer` of an HTTP response, and details for the log."""
    if code < 300:
        deleting = (answer.get("metadata") or {}).get("deletionTimestamp")
        if deleting:
            return Answer.DELETING, ""
        # The answer is the whole object, so a report also finds out what the user wants meanwhile.
        stops = (answer.get("spec") or {}).get("stop") == "keep"
        return (Answer.KEEP if stops else Answer.ACCEPTED), ""
    message = str(answer.get("message", ""))
    details = f"{code}: {message}"
    if NOT_CURRENT in message.lower():
        return Answer.NOT_CURRENT, details
    # A 404 without the job's name means that the API server does not serve this path (yet).
    if code == 404 and (answer.get("details") or {}).get("name") == attempt.name:
        return Answer.DELETED, details
    # The apply is forced, so only the uid can conflict.
    if code == 409 and "uid" in message.lower():
        return Answer.REPLACED, details
    if code in (401, 403):
        return Answer.FORBIDDEN, details
    return (Answer.UNREACHABLE if code >= 500 or code == 429 else Answer.REFUSED), details


def call_with_timeout(seconds: float, call: Callable[[], T], default: T) -> T:
    """The result of ``call()``, or ``default`` when it takes longer. A time-out of a socket bounds each step of a call,
    but not their sum."""
    results: list[T] = []
    thread = Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else default
