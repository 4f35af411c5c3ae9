"""What attempts need to report: their ServiceAccount, and the right to write status.

Both exist before the first child job of a namespace is created. For each further child job they are looked at a little
later, in one look for all that are created within some seconds. If somebody deletes them while an attempt runs, they
are made again at the next look at everything.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from finetune_operator.cache import Cache
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.gate import NotLeading
from finetune_operator.manifests.access import role_binding, service_account
from finetune_operator.names import SERVICE_ACCOUNT
from finetune_operator.settings import Settings
from finetune_operator.views.metadata import Raw

log = logging.getLogger(__name__)

Serves = Callable[[str], Awaitable[bool]]
"""Whether this operator serves a namespace."""


LOOK_SECONDS = 10.0
"""How long after the creation of a child job its access is looked at, unless this is its namespace's first."""


class Access:
    """The access that this operator has seen or made, and that it owes a look."""

    def __init__(self, cluster: Cluster, cache: Cache) -> None:
        self._cluster, self._cache = cluster, cache
        self._seen: set[tuple[str, str, str]] = set()
        self._due: dict[tuple[str, str, str], Raw] = {}
        self._owed = asyncio.Event()

    async def ensure(self, manifest: Raw) -> None:
        """Before a child job is created. Raises ApiError."""
        meta = manifest["metadata"]
        identity = manifest["kind"], meta["namespace"], meta["name"]
        if identity in self._seen:
            self._due[identity] = manifest
            self._owed.set()
        else:
            await self._cluster.ensure(manifest)
            self._seen.add(identity)

    def forget(self, namespace: str) -> None:
        """The namespace is being deleted. There may be another of its name soon."""
        self._seen = {identity for identity in self._seen if identity[1] != namespace}

    async def run(self) -> None:
        """Look at what is owed, until this is cancelled. Child jobs whose access is missing have no pods yet, and get
        them when it is there."""
        while True:
            await self._owed.wait()
            await asyncio.sleep(LOOK_SECONDS)
            self._owed.clear()
            due, self._due = self._due, {}
            # Jobs that are gone by now, perhaps with all that belonged to them, need nothing.
            used = {namespace for namespace, _ in accounts_in_use(self._cache)}
            for (_, namespace, _), manifest in due.items():
                if namespace in used:
                    with contextlib.suppress(NotLeading):
                        await _ensure(self._cluster, manifest)


def accounts_in_use(cache: Cache) -> set[tuple[str, str]]:
    """Namespaces with an attempt that runs, and the ServiceAccounts of these attempts."""
    used = set()
    for key in cache.job_keys():
        job = cache.job(key)
        if job is None or job.deleting:
            continue
        if any(child.owner_uid == job.uid and not child.finished for child in cache.child_jobs.of(key)):
            used.add((job.namespace, job.account))
    return used


async def restore_access(cache: Cache, cluster: Cluster, settings: Settings, serves: Serves) -> None:
    """One read for all ServiceAccounts, and one for each namespace's RoleBinding. Raises nothing: the next look at
    everything tries again. An operator of some namespaces reads the ServiceAccount of each."""
    try:
        used = sorted([(namespace, name) for namespace, name in accounts_in_use(cache) if await serves(namespace)])
        if not used:
            return
        present = set() if settings.watch_namespaces else await cluster.namespaces_with_account(SERVICE_ACCOUNT)
    except ApiError as error:
        log.warning("Cannot list the ServiceAccounts of running attempts: %s", error)
        return
    for namespace, account in used:
        manifests = [role_binding(namespace, account, settings)]
        if account == SERVICE_ACCOUNT and namespace not in present:
            manifests.append(service_account(namespace))
        for manifest in manifests:
            await _ensure(cluster, manifest)


async def _ensure(cluster: Cluster, manifest: Raw) -> None:
    title = f"{manifest['kind']} {manifest['metadata']['namespace']}/{manifest['metadata']['name']}"
    try:
        if await cluster.ensure(manifest):
            log.warning("%s was missing or changed while attempts run. It is restored.", title)
    except ApiError as error:
        log.warning("%s, with which attempts report, cannot be restored: %s", title, error)
