"""What ends a command: a problem with a message for the user, and the exit codes, which docs/cli.md explains."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    """The command did what it was asked for."""
    FAILED = 1
    """The job has failed, or a check found something wrong."""
    USAGE = 2
    """The command line or a file is wrong."""
    NOT_FOUND = 3
    """An object does not exist."""
    DENIED = 4
    """The cluster does not know the user, or the user lacks a right."""
    UNREACHABLE = 5
    """The API server does not answer, or no cluster is configured."""
    REFUSED = 6
    """The API server refuses the object or the change."""
    TIMEOUT = 7
    """The wait took longer than --timeout allows."""
    INTERRUPTED = 130
    """Somebody pressed Ctrl-C. The job continues."""


class Problem(Exception):
    """Says what happened, why, and what to do."""

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code
