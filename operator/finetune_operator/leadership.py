"""Leader election by a Lease of coordination.k8s.io: of all operators of an installation, one works.

The rules are those of client-go. Whoever holds the Lease renews it; every write names the resourceVersion that was
read, so of two writers one fails. Others never compare their clocks with the times in the Lease: they take it when they
have seen no change of it for its duration, by their own clock. A holder that ends gives it back, and the next look of
another takes it.

Two rules are stricter. A Lease that somebody deleted or emptied is not free at once, because its holder may still
write. And nobody takes it while a pod of an earlier release, which knows no Lease, may work.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from finetune_operator.cluster import ApiError, Leases
from finetune_operator.gate import LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, Clock, Gate, monotonic
from finetune_operator.predecessors import Installation
from finetune_operator.views.lease import RELEASED_SECONDS, LeaseView, lease_view
from finetune_operator.views.metadata import Raw, section

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
"""A call that takes longer is tried again, on another connection."""
LONGEST_SECONDS = 60
"""A duration in the Lease is respected up to this: somebody may have edited it."""
BLANK_SECONDS = 3.0
"""For so long a Lease must be absent or empty before an operator takes it that has seen no holder yet. A holder would
have renewed it."""
SETTLE_SECONDS = 5.0
"""How long an operator that ends waits for its last writes before it gives the Lease back."""


class Elector:
    """One operator's part in the election."""

    def __init__(
        self, leases: Leases, gate: Gate, identity: str, installation: Installation, clock: Clock = monotonic
    ) -> None:
        self._leases, self._gate, self._identity, self._clock = leases, gate, identity, clock
        self._installation = installation
        self._lease: Raw = {}
        """As this operator wrote it last."""
        self._seen: LeaseView | None = None
        """The newest Lease with a holder that was seen; None: none yet, or it was given back."""
        self._since: float | None = None
        """When `_seen` was seen first; without it, since when the Lease is absent or empty."""
        self._logged = ""
        self.obstacle = ""
        """Why this operator could not lead if it had to; otherwise empty."""
        self.leading = False
        self.looked = asyncio.Event()
        """Set after the first look at the Lease."""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Until it is cancelled: wait for the Lease, and work as long as this operator holds it. Raises what the work
        raises."""
        while True:
            await self._acquire()
            await self._lead(work)

    async def _acquire(self) -> None:
        while True:
            pause = RETRY_SECONDS
            try:
                wait = await self._try()
                self.obstacle = ""
                if wait is None:
                    return
                pause = min(pause, wait)
            except ApiError as error:
                self._report(error)
            self.looked.set()
            await asyncio.sleep(pause)

    async def _try(self) -> float | None:
        """Take the Lease if it is free: None. Otherwise seconds until it may be. Raises ApiError."""
        raw = await self._leases.get(REQUEST_SECONDS)
        lease = lease_view(raw) if raw else None
        if lease is None or lease.holder != self._identity:
            wait = self._wait(lease)
            if wait > 0:
                state = f"is held by {lease.holder}" if lease and lease.holder else "has no holder"
                self._log(f"Standby: {self._leases.title} {state}.")
                return wait
            if earlier := await self._installation.earlier_releases(self._leases):
                self._log(f"Standby until operators without leader election have ended: {', '.join(earlier)}.")
                return RETRY_SECONDS
        requested = self._clock()
        spec = self._spec(section(raw, "spec") if raw else {})
        try:
            if raw is None:
                self._lease = await self._leases.create(spec, self._installation.owners, REQUEST_SECONDS)
            else:
                self._lease = await self._leases.replace(raw, spec, REQUEST_SECONDS)
        except ApiError as error:
            if error.status != 409:
                raise
            return RETRY_SECONDS
        self._seen = self._since = None
        self._gate.renewed(requested)
        before = f"was held by {lease.holder}" if lease and lease.holder else "had no holder"
        self._log(f"{self._identity} is the leader now. {self._leases.title} {before}.")
        return None

    def _wait(self, lease: LeaseView | None) -> float:
        """Seconds until the Lease may be taken, by what this operator has seen of it."""
        now = self._clock()
        if lease is not None and lease.released:
            self._seen = self._since = None
            return 0
        if lease is not None and lease.holder and lease != self._seen:
            self._seen, self._since = lease, now
        if self._since is None:
            self._since = now
        patience = max(self._seen.seconds, LEASE_SECONDS) if self._seen is not None else BLANK_SECONDS
        return self._since + min(patience, LONGEST_SECONDS) - now

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        self.leading = True
        self.looked.set()
        working = asyncio.ensure_future(work())
        renewing = asyncio.create_task(self._renew_until_lost())
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            held = not renewing.done()
            self._gate.close()
            settled = await self._gate.settled(SETTLE_SECONDS)
            self.leading = False
            for task in (working, renewing):
                task.cancel()
            ended, _ = await asyncio.gather(working, renewing, return_exceptions=True)
            if held and settled:
                await self._release()
            if isinstance(ended, Exception):
                raise ended

    async def _renew_until_lost(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            age = self._gate.age()
            if age >= RENEW_SECONDS:
                self._log(f"No longer the leader: {self._leases.title} was not renewed for {age:.0f} s.")
                return
            try:
                holder = await self._renew(min(REQUEST_SECONDS, RENEW_SECONDS - age))
            except ApiError as error:
                log.warning("%s cannot be renewed. Trying again: %s", self._leases.title, error)
                continue
            if holder != self._identity:
                state = f"is held by {holder}" if holder else "has no holder"
                self._log(f"No longer the leader: {self._leases.title} {state}.")
                return

    async def _renew(self, timeout: float) -> str:
        """Renew the Lease, or create it again. Returns its holder. Raises ApiError."""
        requested = self._clock()
        spec = self._spec(section(self._lease, "spec"))
        holder = await self._update(spec, timeout)
        if holder is None:
            self._lease = await self._leases.create(spec, self._installation.owners, timeout)
            holder = self._identity
        if holder == self._identity:
            self._gate.renewed(requested)
        return holder

    async def _release(self) -> None:
        spec = {**self._spec(section(self._lease, "spec")), "holderIdentity": ""}
        spec["leaseDurationSeconds"] = RELEASED_SECONDS
        try:
            await self._update(spec, REQUEST_SECONDS)
        except ApiError as error:
            words = "%s cannot be given back. Others take it after %d s: %s"
            log.warning(words, self._leases.title, LEASE_SECONDS, error)
        else:
            self._log(f"{self._leases.title} is given back.")

    async def _update(self, spec: Raw, timeout: float) -> str | None:
        """Write the Lease that this operator holds. Returns its holder; if that is another, nothing was written. None:
        the Lease does not exist. Raises ApiError."""
        try:
            self._lease = await self._leases.replace(self._lease, spec, timeout)
        except ApiError as error:
            # An update of an object that does not exist is a conflict, too.
            if error.status not in (404, 409):
                raise
            found = await self._leases.get(timeout)
            if found is None:
                return None
            if (holder := lease_view(found).holder) != self._identity:
                return holder
            # Somebody changed something else in it, or the answer to the last renewal was lost.
            self._lease = await self._leases.replace(found, spec, timeout)
        return self._identity

    def _spec(self, before: Raw) -> Raw:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        known = lease_view({"spec": before})
        same = known.holder == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": before.get("acquireTime", now) if same else now,
            "renewTime": now,
            "leaseTransitions": known.transitions + (not same),
        }

    def _report(self, error: ApiError) -> None:
        """Why the Lease cannot be read or taken. An API server that does not answer is no obstacle of this operator."""
        words = f"{self._leases.title} cannot be read or written, so this operator stays on standby: {error}"
        if error.status == 403:
            words += ". Install the Role and the RoleBinding of the operator's chart in this namespace."
        self.obstacle = words if error.refused else ""
        if self._logged != words:
            self._logged = words
            log.warning("%s", words)

    def _log(self, words: str) -> None:
        """What changes, once."""
        if self._logged != words:
            self._logged = words
            log.info("%s", words)
