"""Event files for TensorBoard, in jobs/<name>/reports/tensorboard of the workspace.

`sender` calls it in the thread of the tracker.
"""

from collections.abc import Mapping
from pathlib import Path

FLUSH_SECONDS = 10


class EventFiles:
    """One file per run. It hides what earlier runs wrote after ``step``, because this run repeats those steps. This
    also holds for step 0: an earlier run may have crashed before its first checkpoint."""

    def __init__(self, folder: Path, run_id: str, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            str(folder),
            purge_step=step + 1,
            flush_secs=FLUSH_SECONDS,
            filename_suffix=f".{run_id}",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, done: bool) -> None:  # noqa: ARG002
        self._writer.close()
