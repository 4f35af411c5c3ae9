"""status.progress during preparation."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from finetune_api.status import Progress

from finetune_trainer.prepare.build_plan import BuildActivity

Activity = Literal["Fetching"] | BuildActivity
MIB = 1 << 20


class PrepareProgress:
    """Reports the progress of an attempt."""

    def __init__(self, attempt: int, report: Callable[[Progress], None]) -> None:
        self._attempt, self._report = attempt, report

    def report(self, activity: Activity, done: int = 0, total: int = 0, rows: int | None = None) -> None:
        """``done`` of ``total`` bytes; a total of 0 is unknown."""
        percent = min(100, 100 * done // total) if total else 0
        step, steps = -(-done // MIB), -(-total // MIB)
        detail = f" {step}/{steps} MiB ({percent}%)" if total else f" {step} MiB" if done else ""
        detail += f", {rows} rows" if rows is not None else ""
        self._report(
            Progress(
                attempt=self._attempt,
                activity=activity,
                step=step,
                total_steps=steps,
                percent=percent,
                summary=f"{activity}{detail}",
                last_update_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
        )
