"""What the API server answered, in words that say what to do."""

import json
import ssl
from typing import Any

from finetune_cli.cluster.kubeconfig import Settings
from finetune_cli.problem import Exit, Problem

VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}


class ApiError(Problem):
    """The API server refused a call. `status` is the HTTP status, `reason` that of Kubernetes."""

    def __init__(self, message: str, code: Exit, status: int, reason: str, details: str) -> None:
        super().__init__(message, code)
        self.status = status
        self.reason = reason
        self.details = details
        """The server's own words."""


def denied(method: str, path: str, status: int, text: bytes, settings: Settings) -> ApiError:
    """The error of an answer."""
    answer = _decoded(text)
    words = str(answer.get("message") or text.decode(errors="replace").strip() or f"HTTP status {status}")
    reason = str(answer.get("reason") or "")
    what = described(path)
    verb = "list" if method == "GET" and '"' not in what else VERBS.get(method, method)
    if status == 401:
        message = (
            f"The API server {settings.server} does not know you (401). Log in again, or check the user of context"
            f" {settings.context}."
        )
        return ApiError(message, Exit.DENIED, status, reason, words)
    if status == 403:
        message = f"You may not {verb} {what}. Ask an administrator for the right. The API server says: {words}"
        return ApiError(message, Exit.DENIED, status, reason, words)
    if status == 404:
        return ApiError(_not_found(what, answer, words), Exit.NOT_FOUND, status, reason, words)
    if status in (400, 409, 422):
        return ApiError(f"The API server refuses to {verb} {what}: {words}", Exit.REFUSED, status, reason, words)
    return ApiError(
        f"The API server failed to {verb} {what}: {words} ({status})", Exit.UNREACHABLE, status, reason, words
    )


def unreachable(settings: Settings, error: Exception) -> Problem:
    """No answer at all."""
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = "The certificate of the server is not trusted. Check certificate-authority in the kubeconfig."
    else:
        advice = "Check that the cluster runs, and that VPN and proxy let you reach it."
    return Problem(
        f"The API server {settings.server} (context {settings.context}) does not answer:"
        f" {str(error) or type(error).__name__}. {advice}",
        Exit.UNREACHABLE,
    )


def described(path: str) -> str:
    """The resource that a path names, such as finetunejobs "a" in namespace b."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        namespace, parts = f" in namespace {parts[1]}", parts[2:]
    resource = "/".join([parts[0], *parts[2:]]) if parts else path
    name = f' "{parts[1]}"' if len(parts) > 1 else ""
    return f"{resource}{name}{namespace}"


def _not_found(what: str, answer: dict[str, Any], words: str) -> str:
    details = answer.get("details") or {}
    if details.get("kind") == "namespaces":
        return f"Namespace {details.get('name')} does not exist. Create it, or choose another: --namespace NAME"
    if what.startswith("finetunejobs") and not details.get("name"):
        return "The cluster does not know FineTuneJobs. Install finetune-operator, or choose another --context."
    if what.startswith("finetunejobs"):
        return f"There is no {what.replace('finetunejobs', 'FineTuneJob')}. `finetune list -A` shows all jobs."
    return f"There is no {what}: {words}"


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
