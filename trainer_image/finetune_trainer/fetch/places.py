"""What fetching is given and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_trainer.fetch import digest

Kind = Literal["model", "adapter", "data"]


@dataclass(frozen=True)
class Places:
    """Where things are for the one who fetches."""

    cache: Path
    """cache/ of the workspace, shared by jobs."""
    volumes: dict[str, Path]
    """Claim -> folder where it is mounted."""
    config_maps: Path
    """Folder with <name>/<key> of each mounted ConfigMap."""
    owner: str
    """Run id: whose leases the locks are."""
    attempt: tuple[str, int] | None = None
    """(job, number), where an operator sees to it that an attempt starts when no pod of an earlier one is left."""


@dataclass(frozen=True)
class Fetched:
    """A source that can be read now."""

    uri: str
    path: Path
    files: Mapping[str, str]
    """Name -> sha256 of the content."""
    revision: str | None
    """The hub's commit."""

    @property
    def digest(self) -> str:
        """sha256 over names and contents, the same wherever the files came from."""
        return digest.combined(self.files)

    @property
    def digest_without_code(self) -> str:
        """The same whether or not a model's own code was fetched with it."""
        return digest.without_code(self.files)
