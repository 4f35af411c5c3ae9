"""Which ends of the ranks are followed by a restart in the same pods, after which pause, and with how much less memory.

Node 0 asks once for each end (`agreement`). What gets no restart ends the pods as if there were none: with the exit
code and the message of the last end, after which the operator decides.
"""

from collections.abc import Sequence
from typing import Literal

from finetune_api.exit_codes import EndClass, ExitCode, end_class_of, recomputes_more
from finetune_api.micro_batch import MicroBatch
from finetune_api.status import Restart
from finetune_api.training import Recompute

from finetune_trainer.reporting.status import now
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.results import truncate

PAUSES = (0.0, 10.0)
"""Seconds before each restart of a row without a newer checkpoint. After so many, new pods are tried: these may be on a
bad node."""
NOT_IN_PLACE = (ExitCode.SUPERSEDED, ExitCode.SOURCE_UNREACHABLE)
"""Codes of the class RETRY after which ranks are not started again: nobody wants the result; a service that does not
answer needs time, which the operator gives it without holding GPUs."""
MESSAGE = 256
"""Characters of a message that a restart repeats."""


class RestartPolicy:
    """The restarts of one run. ``budget`` is how many failures may be followed by one; ``own`` the micro-batch of the
    job, ``micro_batch`` that of the first ranks; ``step`` the newest checkpoint's at their start; ``longest`` is how
    many tokens the longest row has; ``mode`` is training.recompute, and ``recompute`` that of the attempt."""

    def __init__(
        self,
        budget: int,
        *,
        own: MicroBatch,
        micro_batch: MicroBatch,
        step: int,
        longest: int = 1,
        mode: Recompute = "auto",
        recompute: Literal["all"] | None = None,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self.number = 0
        """Restarts so far."""
        self._failures = 0
        self._in_a_row = 0
        """Failures since the newest checkpoint."""
        self._budget, self._own, self._micro_batch, self._longest = budget, own, micro_batch, longest
        self._mode, self._recompute = mode, recompute
        self._step, self._pauses = step, pauses

    def next(self, report: ExitReport, step: int) -> tuple[Restart, float] | None:
        """The restart that follows an end, and the pause before it; None when none follows. ``step`` is that of the
        newest checkpoint by now."""
        if step > self._step:
            self._step, self._in_a_row = step, 0
        pause = self._pause(report)
        if pause is None:
            return None
        self.number += 1
        restart = Restart(
            number=self.number,
            failures=self._failures,
            reason=report.reason,
            exit_code=report.code,
            message=truncate(report.message, MESSAGE),
            time=now(),
            recompute=self._recompute,
            **(self._micro_batch.fields() if self._micro_batch != self._own else {}),
        )
        return restart, pause

    def _pause(self, report: ExitReport) -> float | None:
        end = end_class_of(report.code, report.out_of_memory)
        if report.needs_new_pods or report.code in NOT_IN_PLACE:
            return None
        if end is EndClass.GPU_OUT_OF_MEMORY and not self._micro_batch.is_smallest(self._longest):
            self._micro_batch = self._micro_batch.half(self._longest)
            return 0.0
        if end is EndClass.GPU_OUT_OF_MEMORY and recomputes_more(
            self._mode, self._recompute, report.out_of_memory, self._micro_batch, self._longest
        ):
            self._recompute = "all"
            return 0.0
        if end is not EndClass.RETRY or self._failures >= self._budget or self._in_a_row >= len(self._pauses):
            return None
        pause = self._pauses[self._in_a_row]
        self._failures += 1
        self._in_a_row += 1
        return pause
