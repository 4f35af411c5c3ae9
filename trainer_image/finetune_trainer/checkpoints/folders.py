"""Where checkpoints lie and what their folders are called. Reads nothing but names."""

from pathlib import Path

PREFIX = "checkpoint-"
STAGING = ".staging-"
"""Being written by the run whose folder it is in; a leftover once that run has ended."""
DELETING = ".deleting-"
"""On its way out: never taken for a checkpoint."""


def step_of(path: Path) -> int | None:
    """None where it isn't the folder of a checkpoint."""
    number = path.name.removeprefix(PREFIX)
    return int(number) if path.name.startswith(PREFIX) and number.isdecimal() else None


def staged(run_checkpoints: Path, step: int) -> Path:
    """The folder that is written, before it gets its place by one rename."""
    return run_checkpoints / f"{STAGING}{step}" / f"{PREFIX}{step}"


def newest_first(checkpoints: Path) -> list[Path]:
    """Every checkpoint folder of every run of the job, whole or not, by step."""
    # Not by glob: it leaves out what it may not read, and the run would start over.
    runs = [run for run in checkpoints.iterdir() if run.is_dir()]
    found = [path for run in runs for path in run.iterdir() if step_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: (step_of(path) or 0, path.stat().st_mtime), reverse=True)
