"""Names of FineTuneJobs, by which jobs refer to each other."""

from typing import Annotated

from pydantic import StringConstraints

NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MAX = 40
"""A name becomes part of host names of at most 63 characters: <name>-<5 of uid>-<attempt>-<rank>."""

JobName = Annotated[str, StringConstraints(pattern=NAME, max_length=NAME_MAX)]
"""Name of a FineTuneJob in the same namespace."""
