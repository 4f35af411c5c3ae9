"""What a reward service has said, kept in jobs/<name>/scores/: so that it is never asked twice.

Used by rank 0. Each answer is a file of its own, written whole before its scores are used and named by the step that
asked and the digest of what was asked. A run that goes on from before that step asks the files. Once a checkpoint past
it is in its place, which holds the scores, or the artifact is, they go.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune_api.contract import canonical

from finetune_trainer.workspace import usable, write_json

log = logging.getLogger(__name__)

FOLDER = "scores"


class KeptScores:
    """``folder`` is the job's; ``service`` tells what is asked from all else."""

    def __init__(self, folder: Path, service: Sequence[str]) -> None:
        self._folder, self._service = folder / FOLDER, list(service)

    def get(self, step: int, texts: Sequence[str], ask: Callable[[Sequence[str]], list[float]]) -> list[float]:
        """The texts' scores, of which ``ask`` is the source."""
        asked = canonical([self._service, list(texts)]).encode()
        file = self._folder / f"{step:08d}-{hashlib.sha256(asked).hexdigest()[:32]}.json"
        known = _read(file, len(texts))
        if known is not None:
            return known
        scores = ask(texts)
        with usable(self._folder.parent):
            self._folder.mkdir(exist_ok=True)
            write_json(file, {"scores": scores})
        return scores

    def forget(self, step: int) -> None:
        """All that was asked before this step, which won't be done again, and a folder that has nothing else."""
        try:
            for file in self._folder.glob("*.json"):
                if int(file.name.partition("-")[0]) < step:
                    file.unlink(missing_ok=True)
            if self._folder.is_dir() and not any(self._folder.iterdir()):
                self._folder.rmdir()
        except (OSError, ValueError) as error:
            log.warning("old scores are left: %s", error)


def _read(file: Path, count: int) -> list[float] | None:
    try:
        scores: list[float] = json.loads(file.read_bytes())["scores"]
        return scores if len(scores) == count else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
