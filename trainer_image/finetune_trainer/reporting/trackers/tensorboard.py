"""Event files for TensorBoard, in the workspace: point it at jobs/<name>/reports/tensorboard.

Called by `callback`, in the tracker's thread.
"""

from collections.abc import Mapping
from pathlib import Path

FLUSH_SECONDS = 10


class EventFiles:
    """One file a run. What earlier runs wrote after ``step`` is hidden: this one does those steps again. Step 0 is a
    start like any other: a run may have crashed before its first checkpoint."""

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
