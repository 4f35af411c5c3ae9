"""The directories that a job reads from: the workspace, volumes and ConfigMaps, mounted in a pod or named on a
laptop."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api.contract import CONFIG_MAPS, VOLUMES, WORKSPACE, ResolvedJob
from finetune_api.source import PvcPath, parse


def workspace_root(named: Path | None, *, in_cluster: bool) -> Path:
    """The workspace's directory: ``named`` by the command line, else the pod's mount, else ./workspace."""
    return named or (Path(WORKSPACE) if in_cluster else Path("workspace"))


def volume_folders(job: ResolvedJob, workspace: Path, named: dict[str, Path]) -> dict[str, Path]:
    """Claim -> directory. Directories that the command line names come first, then the pod's mounts, then the workspace
    for its own claim. On a laptop all jobs share one workspace, so it also stands for the claims of referenced jobs."""
    below = Path(VOLUMES)
    mounted = {folder.name: folder for folder in below.iterdir() if folder.is_dir()} if below.is_dir() else {}
    artifacts = [parse(reference.artifact.uri) for reference in job.references]
    referenced = {artifact.claim: workspace for artifact in artifacts if isinstance(artifact, PvcPath)}
    return {**referenced, job.workspace_claim: workspace, **mounted, **named}


@contextmanager
def config_maps(named: dict[str, Path]) -> Iterator[Path]:
    """A directory with <name>/<key>: the pod's, or a temporary one with links to the directories that the command line
    names."""
    if not named:
        yield Path(CONFIG_MAPS)
        return
    folder = Path(tempfile.mkdtemp(prefix="finetune-configmaps-"))
    try:
        for name, source in named.items():
            (folder / name).symlink_to(source.resolve(), target_is_directory=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
