"""What a user may do, to grey out buttons. The API server decides again when a button is pressed."""

import asyncio
import time

from finetune_cli.cluster.client import Client

from finetune_ui.kube import Kube
from finetune_ui.session import User

PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
ASKED = (
    ("patch", "finetune-operator.io", "finetunejobs", ""),
    ("delete", "finetune-operator.io", "finetunejobs", ""),
    ("create", "finetune-operator.io", "finetunejobs", ""),
    ("create", "", "pods", ""),
    ("get", "", "pods", "log"),
)
"""Verb, group, resource, subresource."""
SECONDS = 60.0
KEPT = 1000


class Rights:
    """Answers of the API server, which are valid for a minute."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, frozenset[str]]] = {}

    async def of(self, kube: Kube, user: User, namespace: str) -> frozenset[str]:
        """The rights among ASKED that the user has, such as `patch finetunejobs` or `get pods/log`."""
        key, now = (user.key, namespace), time.monotonic()
        if key in self._known and self._known[key][0] > now:
            return self._known[key][1]
        answers = await asyncio.gather(*(kube.call(user, namespace, allowed, *each) for each in ASKED))
        found = frozenset(
            f"{verb} {resource}{'/' if sub else ''}{sub}"
            for (verb, _, resource, sub), answer in zip(ASKED, answers, strict=True)
            if answer
        )
        self._known = {each: value for each, value in self._known.items() if value[0] > now}
        if len(self._known) < KEPT:
            self._known[key] = now + SECONDS, found
        return found


def allowed(client: Client, verb: str, group: str, resource: str, sub: str) -> bool:
    """SelfSubjectAccessReview in the namespace of the client."""
    attributes = {"namespace": client.namespace, "verb": verb, "group": group, "resource": resource, "subresource": sub}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    return bool(client.call("POST", PATH, review)["status"]["allowed"])
