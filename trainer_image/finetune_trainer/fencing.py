"""Watches the workspace's fence while the ranks run.

Started by `launch`, in a thread of its own: a file server that hangs must not keep SIGTERM from the ranks. Node 0 holds
the fence. The others look at who does: they can't know rank 0's run id before the ranks have met, so they go by the
attempt.
"""

import logging
from collections.abc import Callable
from threading import Event, Thread

from finetune_api.contract import AttemptFacts

from finetune_trainer import workspace
from finetune_trainer.errors import Superseded, TrainerError
from finetune_trainer.run import Folders
from finetune_trainer.workspace import Fence

INTERVAL = 5.0

log = logging.getLogger(__name__)


def hold(folders: Folders, fence: Fence) -> Event:
    """Set when a later run has taken the fence from this one."""
    return _watch(lambda: workspace.check_fence(folders, fence))


def follow(folders: Folders, facts: AttemptFacts) -> Event:
    """Set when the fence is no longer this attempt's: a higher one has it, or, once node 0 had it, anybody else."""
    ours = False

    def check() -> None:
        nonlocal ours
        now = Fence.read(folders)
        if now is None:
            return
        same = now.uid == facts.uid
        if (same and now.attempt > facts.attempt) or (ours and not same):
            raise Superseded(f"Attempt {now.attempt} of job uid {now.uid} has taken over {folders.job}")
        ours = ours or (same and now.attempt == facts.attempt)

    return _watch(check)


def _watch(check: Callable[[], None]) -> Event:
    lost = Event()

    def watch() -> None:
        while not lost.wait(INTERVAL):
            try:
                check()
            except Superseded as error:
                log.warning("%s", error)
                lost.set()
            except (OSError, TrainerError) as error:
                log.warning("%s can't be checked: %s", workspace.FENCE, error)

    Thread(target=watch, name="fence", daemon=True).start()
    return lost
