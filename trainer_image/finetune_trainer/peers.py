"""The last words of ranks, so that the end of one is the end of all, for its reason and soon.

Made by `worker`, connected by `rendezvous` to the store that rank 0 keeps. A rank that ends says how; a thread of each
other rank hears it and, if that rank doesn't end by itself, ends it with the same code and words: it may sit in a
collective that will never return. A rank whose connection breaks before it heard anything waits a moment for the
words, and else says who is gone.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Thread
from typing import TYPE_CHECKING

from finetune_api.exit_codes import REASONS, ExitCode

from finetune_trainer import heartbeat, results
from finetune_trainer.results import End

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

POLL = 0.5
NOTICE = 5.0
"""Seconds in which a rank may find out by itself that another one failed."""
HEARSAY = 2.5
"""Seconds in which the words of a rank that is gone may arrive after its connection broke."""
LINGER = 3.0
"""Seconds for which rank 0 keeps the store after its own end, so that its last words are heard."""
BROKEN = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "nccl error")


class Peers:
    """The other ranks. `leave` ends this one, from a thread; `saving` is how long a save may take after SIGTERM."""

    def __init__(
        self, rank: int, world_size: int, ranks_on_node: int, saving: float, leave: Callable[[End], None]
    ) -> None:
        self._rank, self._world, self._ranks_on_node = rank, world_size, ranks_on_node
        self._saving, self._leave = saving, leave
        self._store: TCPStore | None = None
        self._leaving = Event()
        self._heard = False

    def connect(self, store: "TCPStore") -> None:
        """From now on last words are heard. The store is this thread's and `farewell`'s alone."""
        self._store = store
        Thread(target=self._listen, name="peers", daemon=True).start()

    def farewell(self, end: End) -> None:
        """Tell the others how this rank ends. Rank 0 stays until they know, or for LINGER."""
        self._leaving.set()
        if self._store is None:
            return
        try:
            self._store.set(f"end/{self._rank}", json.dumps(results.to_json(end)))
            self._store.add("ends", 1)
            self._hear()
            last = time.monotonic() + LINGER
            while self._rank == 0 and self._store.add("heard", 0) < self._world and time.monotonic() < last:
                time.sleep(POLL / 5)
        except RuntimeError:
            pass  # rank 0 is gone, and the store with it

    def why_lost(self, error: BaseException) -> End | None:
        """What a broken connection to another rank came from; None if `error` is something else."""
        if self._store is None or not is_broken(error):
            return None
        first = str(error).strip().split("\n")[0]
        message = f"Rank {self._rank} lost its connection to the others ({first})"
        try:
            self._store.set(f"lost/{self._rank}", "")
            last = time.monotonic() + HEARSAY
            while time.monotonic() < last:
                cause = self._cause(self._words())
                if cause is not None:
                    return cause
                time.sleep(POLL / 5)
            gone = [rank for rank in range(self._world) if not self._said_anything(rank)]
        except RuntimeError:
            gone = [0]
        if gone:
            are = "is" if len(gone) == 1 else "are"
            whose = named(gone, self._ranks_on_node)
            message += f". {whose} {are} gone without a word: see how the pod ended"
        return _echo(End(ExitCode.INTERNAL_ERROR, REASONS[ExitCode.INTERNAL_ERROR], message))

    def _said_anything(self, rank: int) -> bool:
        assert self._store is not None
        return bool(self._store.check([f"lost/{rank}"]) or self._store.check([f"end/{rank}"]))

    def _listen(self) -> None:
        assert self._store is not None
        known = 0
        while not self._leaving.wait(POLL):
            try:
                ends = self._store.add("ends", 0)
                if ends == known:
                    continue
                known, words = ends, self._words()
                cause = self._cause(words)
                if cause is None and 0 in words:
                    return  # all is done, and the store goes
                if cause is not None:
                    self._hear()
            except RuntimeError:
                who = named([0], self._ranks_on_node)
                message = f"{who} is gone without a word: see how the pod ended"
                cause = _echo(End(ExitCode.INTERNAL_ERROR, REASONS[ExitCode.INTERNAL_ERROR], message))
            if cause is not None:
                if not self._leaving.wait(self._patience(cause)):
                    self._leave(cause)
                return

    def _patience(self, cause: End) -> float:
        """Told to stop, all ranks save together; before there is anything to save, one may have ended alone."""
        saving = cause.code == ExitCode.DISRUPTED and heartbeat.last().phase != "load"
        return self._saving if saving else NOTICE

    def _words(self) -> dict[int, End]:
        """The last words of the others, by rank."""
        assert self._store is not None
        others = (rank for rank in range(self._world) if rank != self._rank)
        said = {rank: self._store.get(f"end/{rank}") for rank in others if self._store.check([f"end/{rank}"])}
        return {rank: results.of_json(json.loads(text)) for rank, text in said.items()}

    def _cause(self, words: dict[int, End]) -> End | None:
        """Of an end that is not a success: the strongest, told as hearsay."""
        failed = {rank: end for rank, end in words.items() if end.code != 0 and not end.echo}
        if not failed:
            return None
        decisive = results.combine(list(failed.values()))
        rank = next(rank for rank, end in failed.items() if end.code == decisive.code)
        return _echo(replace(decisive, message=f"{named([rank], self._ranks_on_node)}: {failed[rank].message}"))

    def _hear(self) -> None:
        """Once a rank: it knows of the end, so rank 0 may go."""
        if not self._heard and self._store is not None:
            self._heard = True
            self._store.add("heard", 1)


def named(ranks: list[int], ranks_on_node: int) -> str:
    """Ranks 2 and 3 (node 1), for people."""
    nodes = sorted({rank // ranks_on_node for rank in ranks})
    return f"Rank{'s' * (len(ranks) > 1)} {_listed(ranks)} (node{'s' * (len(nodes) > 1)} {_listed(nodes)})"


def _listed(numbers: list[int]) -> str:
    words = [str(number) for number in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _echo(end: End) -> End:
    return replace(end, echo=True)


def is_broken(error: BaseException) -> bool:
    """Whether a collective failed because of another rank. By name and words, as torch has no class of its own for
    all of them."""
    by_torch = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    words = str(error).lower()
    return by_torch or (isinstance(error, RuntimeError) and any(word in words for word in BROKEN))
