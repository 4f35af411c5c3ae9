"""How a call to the API server fails."""

import json
import re

REFUSALS = (400, 403, 404, 409, 422)
"""Another try at once does not help: quota, admission, a missing right, a name that is taken."""


class ApiError(Exception):
    """The API server refused a call, or did not answer (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status
        self.message = message

    @property
    def refused(self) -> bool:
        """Whether the API server works, and refuses this object. An admission webhook that does not answer is a refusal
        too, although its status is 500."""
        return self.status in REFUSALS or (self.status >= 500 and "webhook" in str(self))

    @property
    def invalid(self) -> bool:
        """Whether no other try of the same object can succeed: the object itself is wrong, and no policy refuses it."""
        return self.status == 422 and not re.search("admission webhook|AdmissionPolicy", str(self))


class NamespaceTerminatingError(ApiError):
    """The namespace is being deleted, or is gone: nothing can be created in it any more."""


def message_of(data: bytes) -> str:
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data[:300].decode(errors="replace").strip()


def namespace_terminating(status: int, data: bytes) -> bool:
    """Whether an answer says that the namespace is being deleted (403), or that it does not exist (404)."""
    try:
        details = json.loads(data).get("details") or {}
    except (ValueError, AttributeError):
        return False
    causes = {cause.get("reason") for cause in details.get("causes") or []}
    return (status == 403 and "NamespaceTerminating" in causes) or (
        status == 404 and details.get("kind") == "namespaces"
    )
