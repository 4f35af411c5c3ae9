"""Which namespaces this operator serves: those that it watches and can list, and that no other installation claims.

The role with which training pods report is the claim. It carries the name of the installation that brought it: a
ClusterRole for the whole cluster, a Role for a namespace. The Role decides if both exist. So an installation for some
namespaces takes them from an installation for the whole cluster, and of two that want the same, the role names one.

A claim is read again before work is done, at most every `FRESH_SECONDS`. It changes when somebody installs or removes
an installation. Two operators may then serve a namespace for this time, and do no harm: a status is written only over
the version that the plan was made from, and names of children are derived from the job.
"""

import asyncio
import logging
import math

from finetune_operator.cluster import EVERYWHERE, ApiError, Cluster
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)

FRESH_SECONDS = 15.0
"""How long a claim that was read is relied upon."""


class Territory:
    """See the module's docstring."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster, self._settings = cluster, settings
        self._claims: dict[str, str] = {}
        """Scope (a namespace, or EVERYWHERE) -> the installation that its role names."""
        self._read_at = -math.inf
        self._reading = asyncio.Lock()
        self._closed: dict[str, ApiError] = {}
        """Watched namespaces that cannot be listed, and why."""
        self._logged: dict[str, str] = {}

    @property
    def scopes(self) -> list[str]:
        """What is watched and listed."""
        return self._settings.watch_namespaces or [EVERYWHERE]

    @property
    def closed(self) -> bool:
        """Whether a namespace cannot be listed."""
        return bool(self._closed)

    def is_closed(self, namespace: str) -> bool:
        """Whether this namespace cannot be listed."""
        return namespace in self._closed

    def close(self, namespace: str, error: ApiError) -> None:
        """The namespace cannot be listed: it does not exist, is being deleted, or lacks the chart's Role."""
        self._closed[namespace] = error
        self._log(namespace, f"Namespace {namespace} is not served, because it cannot be listed: {error}")

    def open(self, namespace: str) -> None:
        """The namespace was listed."""
        if self._closed.pop(namespace, None):
            self._log(namespace, "")

    async def serves(self, namespace: str) -> bool:
        """Whether this operator serves a namespace. Raises ApiError."""
        if namespace in self._closed:
            return False
        await self._refresh()
        return not self._objection(namespace)

    async def obstacles(self) -> list[str]:
        """Why the operator cannot serve what it was installed for. A single namespace that cannot be listed stops no
        other, and is none. Raises ApiError."""
        await self._refresh()
        claimed = [words for scope in self.scopes if scope not in self._closed and (words := self._objection(scope))]
        if len(self._closed) < len(self.scopes):
            return claimed
        return [f"Namespace {namespace} cannot be listed: {error}" for namespace, error in self._closed.items()]

    async def _refresh(self) -> None:
        if not self._settings.installation:
            return
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at >= FRESH_SECONDS:
                self._claims = await self._read()
                self._read_at = now

    async def _read(self) -> dict[str, str]:
        role, watched = self._settings.trainer_role, self._settings.watch_namespaces
        if watched:
            return {name: await self._claim(role, name) for name in watched if name not in self._closed}
        return {EVERYWHERE: await self._cluster.installation_of(role), **await self._cluster.installations(role)}

    async def _claim(self, role: str, namespace: str) -> str:
        """A namespace that loses the chart's Role between two listings has no claim."""
        try:
            return await self._cluster.installation_of(role, namespace)
        except ApiError as error:
            if error.status != 403:
                raise
            return ""

    def _objection(self, namespace: str) -> str:
        """Why a namespace, or the cluster, is not this operator's; otherwise empty."""
        scope = namespace if self._claims.get(namespace) else EVERYWHERE
        claim, words = self._claims.get(scope, ""), ""
        if claim and claim != self._settings.installation:
            words = _words(self._settings.trainer_role, scope, claim)
        self._log(scope, words)
        return words

    def _log(self, scope: str, words: str) -> None:
        """What changes, once."""
        if self._logged.get(scope, "") != words:
            self._logged[scope] = words
            log.info("%s", words or f"{f'Namespace {scope}' if scope else 'The cluster'} is served.")


def _words(role: str, scope: str, claim: str) -> str:
    if scope == EVERYWHERE:
        return (
            f"Installation {claim} serves the cluster, because the ClusterRole {role} names it. Uninstall one of the"
            " two installations, or divide the namespaces between them (watchNamespaces)."
        )
    return (
        f"Namespace {scope} is left to installation {claim}, because the Role {role} in it names that installation."
        " Remove the namespace from the watchNamespaces of one of the two."
    )
