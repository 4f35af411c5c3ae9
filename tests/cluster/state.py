"""The paths of a local cluster, and its state between two commands.

Called by every module of this package. A cluster belongs to a checkout and has a name. Both give a short id, which also
names its network link and its cgroups, so clusters of several checkouts can run at the same time.
Invariant: only the cache and `<checkout>/.cluster` are written, so removing both removes the cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

CONTEXT_PREFIX = "finetune-local-"
DEFAULT_NAME = "local"
CHECKOUT = Path(__file__).resolve().parents[2]
NODES_ALLOWED = (1, 2)


class ClusterError(Exception):
    """Says what was wanted, what prevents it, and what to do."""


@dataclass
class State:
    """A cluster. The control-plane-only mode uses `ports`, the full mode uses `subnet`."""

    name: str
    id: str
    checkout: str
    control_plane_only: bool
    nodes: int = 1
    subnet: str = ""
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return clusters_root() / self.id

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def config(self) -> Path:
        return self.directory / "config"

    @property
    def bin(self) -> Path:
        return self.directory / "bin"

    @property
    def context(self) -> str:
        return CONTEXT_PREFIX + self.name

    @property
    def kubeconfig(self) -> Path:
        return Path(self.checkout) / ".cluster" / self.name / "kubeconfig"

    def node_directory(self, node: int) -> Path:
        return self.directory / f"node-{node}"

    def program(self, name: str) -> str:
        """The resolved path of a program. A rebuilt program has another path, so it is started again."""
        return str((self.bin / name).resolve())


def cache_root() -> Path:
    given = os.environ.get("FINETUNE_CACHE")
    return Path(given).expanduser().resolve() if given else Path.home() / ".cache" / "finetune-operator"


def clusters_root() -> Path:
    return cache_root() / "clusters"


def cluster_id(checkout: str, name: str) -> str:
    return hashlib.sha256(f"{checkout}\0{name}".encode()).hexdigest()[:6]


def check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,18}[a-z0-9])?", name):
        raise ClusterError(f"cluster name {name!r}: use at most 20 of a-z, 0-9 and '-', starting with a letter")
    return name


def load(name: str) -> State | None:
    """The cluster of this checkout with that name, or None if `up` has not saved it."""
    return _read(clusters_root() / cluster_id(str(CHECKOUT), check_name(name)) / "state.json")


def all_clusters() -> list[State]:
    """All clusters of this cache, including those of other checkouts."""
    states = [_read(path) for path in sorted(clusters_root().glob("*/state.json"))]
    return [state for state in states if state]


def save(state: State) -> None:
    state.directory.mkdir(parents=True, exist_ok=True)
    replace(state.directory / "state.json", json.dumps(asdict(state), indent=2) + "\n")


def _read(path: Path) -> State | None:
    try:
        return State(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ClusterError(f"{path} is not readable ({error}): remove {path.parent} and start again") from None


def replace(path: Path, text: str, mode: int = 0o600) -> None:
    """Write the file atomically, so that a killed start leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.replace(path)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """One command at a time per cluster (or per `build`, `subnets`). A second command waits."""
    import fcntl  # missing on Windows, where the user shall see a message instead of an ImportError

    path = cache_root() / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
