"""Where checkpoints are, and the names of their directories. Reads nothing but names."""

from pathlib import Path

PREFIX = "checkpoint-"
STAGING = ".staging-"
"""A checkpoint that the run is writing. It is a leftover once that run has ended."""
DELETING = ".deleting-"
"""A checkpoint that is being deleted. It no longer counts as a checkpoint."""


def step_of(path: Path) -> int | None:
    """The step of a checkpoint's directory. None for any other directory."""
    number = path.name.removeprefix(PREFIX)
    return int(number) if path.name.startswith(PREFIX) and number.isdecimal() else None


def staging_path(run_checkpoints: Path, step: int) -> Path:
    """The directory in which a checkpoint is written, before one rename moves it to its final path."""
    return run_checkpoints / f"{STAGING}{step}" / f"{PREFIX}{step}"


def newest_first(checkpoints: Path) -> list[Path]:
    """The checkpoint directories of all runs of the job, intact or not, sorted by step."""
    # Not by glob: it skips directories without read permission, and the run would start from the beginning.
    runs = [run for run in checkpoints.iterdir() if run.is_dir()]
    directories = [path for run in runs for path in run.iterdir() if step_of(path) is not None and path.is_dir()]
    return sorted(directories, key=lambda path: (step_of(path) or 0, path.stat().st_mtime), reverse=True)
