"""What a run spends its time on: seconds by use, from the trainer's first line to the last sign of its ranks.

`heartbeat` counts in every rank, and `launcher.ledger` counts what is before, between and after the ranks. Only node 0
reports it: the ranks of a job work in step. `finetune_api.status.gpu` has the uses.
"""

import json
from dataclasses import dataclass, field, replace

from finetune_api.status import USES, RunUses, Use


@dataclass(frozen=True)
class Account:
    """The uses of a run so far. Immutable: threads read it while another counts."""

    run: str = ""
    """uid of the pod of node 0."""
    since: str = ""
    """Time at which the trainer began."""
    until: float = 0.0
    """Monotonic time up to which the account counts. All processes of a machine share that clock."""
    furthest: int = 0
    """Newest step that any run of the job has done. A step up to it is done again."""
    redone_steps: int = 0
    seconds: dict[Use, float] = field(default_factory=dict)

    def spent(self, use: Use, until: float) -> "Account":
        """The account up to a later time."""
        seconds = self.seconds.get(use, 0.0) + max(0.0, until - self.until)
        return replace(self, until=max(until, self.until), seconds={**self.seconds, use: seconds})

    def stepped(self, before: int, step: int) -> "Account":
        """The account after the steps from ``before`` to ``step``."""
        redone = max(0, min(step, self.furthest) - before)
        return replace(self, furthest=max(step, self.furthest), redone_steps=self.redone_steps + redone)

    def report(self) -> RunUses | None:
        """For status; None without a run, as on a laptop."""
        if not self.run:
            return None
        amounts: dict[str, int] = {use: round(1000 * self.seconds.get(use, 0.0)) for use in USES}
        spent = {use: amount for use, amount in amounts.items() if amount}
        return RunUses(run=self.run, since=self.since, milliseconds=spent, redone_steps=self.redone_steps)

    def packed(self) -> str:
        """What changes, in a text without spaces."""
        seconds = {use: round(spent, 4) for use, spent in self.seconds.items()}
        return json.dumps([self.until, self.furthest, self.redone_steps, seconds], separators=(",", ":"))

    def unpacked(self, text: str) -> "Account":
        """The account with what has changed. Raises ValueError."""
        until, furthest, redone_steps, seconds = json.loads(text)
        return replace(self, until=until, furthest=furthest, redone_steps=redone_steps, seconds=seconds)
