"""Watches the workspace's fence while the ranks run, in a thread of its own.

A file server that hangs must not keep SIGTERM from the ranks, so this is not a part of `supervise`. Node 0 holds the
fence and compares it by run id. The other nodes compare it by attempt: they learn rank 0's run id only when the ranks
meet.
"""

import logging
from collections.abc import Callable
from threading import Event, Lock, Thread

from finetune_api.contract import AttemptFacts

from finetune_trainer.errors import Superseded, TrainerError
from finetune_trainer.workspace import fencing
from finetune_trainer.workspace.fencing import Fence
from finetune_trainer.workspace.folders import Folders

INTERVAL = 5.0
"""Seconds between two checks."""

log = logging.getLogger(__name__)


class HeldFence:
    """For node 0: the fence that this run holds. The event ``lost`` is set when a later run has taken it."""

    def __init__(self, folders: Folders, fence: Fence) -> None:
        self.fence = fence
        self._folders = folders
        self._switching = Lock()
        """Between two fences, the check would take the new one for that of a later run."""
        self.lost = _watch(self._check)

    def renew(self, folders: Folders, run_id: str) -> None:
        """Take the fence for the ranks that start again, whose directories are ``folders``. Raises Superseded."""
        with self._switching:
            self.fence = fencing.renew(folders, self.fence, run_id)

    def check(self) -> None:
        """Raises Superseded when a later run has taken the fence, without waiting for the next look. A workspace that
        cannot be read proves nothing."""
        try:
            self._check()
        except Superseded:
            raise
        except (OSError, TrainerError) as error:
            log.warning("%s cannot be checked: %s", fencing.FENCE, error)

    def _check(self) -> None:
        with self._switching:
            fencing.check_fence(self._folders, self.fence)


def watch_attempt(folders: Folders, attempt: AttemptFacts) -> Event:
    """For the other nodes. The event is set when a higher attempt holds the fence, or, after node 0 held it, another
    job."""
    ours = False

    def check() -> None:
        nonlocal ours
        current = Fence.read(folders)
        if current is None:
            return
        same_job = current.uid == attempt.uid
        if (same_job and current.attempt > attempt.attempt) or (ours and not same_job):
            raise Superseded(f"Attempt {current.attempt} of job uid {current.uid} has taken over {folders.job}")
        ours = ours or (same_job and current.attempt == attempt.attempt)

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
                log.warning("%s cannot be checked: %s", fencing.FENCE, error)

    Thread(target=watch, name="fence", daemon=True).start()
    return lost
