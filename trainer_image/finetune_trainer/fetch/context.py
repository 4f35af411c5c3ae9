"""What a fetch is given, and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_trainer.fetch import digests

SourceKind = Literal["model", "adapter", "data"]
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total)."""
CheckStop = Callable[[], None]
"""Called often. Raises when the job has to stop."""


@dataclass(frozen=True)
class FetchContext:
    """Where a run finds its sources, and who it is to other runs."""

    cache: Path
    """cache/ of the workspace. Jobs share it."""
    volumes: dict[str, Path]
    """Claim -> directory where it is mounted."""
    config_maps: Path
    """Directory with <name>/<key> for each mounted ConfigMap."""
    owner: str
    """Run id: the owner of the leases that this run takes."""
    attempt: tuple[str, int] | None = None
    """(job, number). Set only where an operator starts an attempt after the pods of earlier attempts are gone."""


@dataclass(frozen=True)
class Request:
    """A source as the job asks for it."""

    uri: str
    kind: SourceKind
    split: str | None = None
    subset: str | None = None
    code: bool = False
    """Whether to fetch a model's own Python files too."""


@dataclass(frozen=True)
class Fetched:
    """A source that is readable now."""

    uri: str
    path: Path
    files: Mapping[str, str]
    """Name -> sha256 of the content."""
    revision: str | None
    """Commit on the hub."""

    @property
    def digest(self) -> str:
        """sha256 over names and contents. The same files have the same digest wherever they came from."""
        return digests.combine(self.files)

    @property
    def digest_without_code(self) -> str:
        """The digest without Python files, so it is the same whether or not a model's own code was fetched."""
        return digests.combine_without_code(self.files)
