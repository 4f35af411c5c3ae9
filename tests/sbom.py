"""Copies the list of what each image contains out of the image: `python3 -m tests.sbom` (`make sbom`) -> dist/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import cluster, images

FOLDER = Path("usr/share/sbom")
DIST = images.CHECKOUT / "dist"


def copy(target: str) -> Path:
    """Build the image unless it exists. Returns the file."""
    name = f"finetune-{target}.cdx.json"
    container = _buildah("from", images.build(target))
    try:
        root = Path(_buildah("mount", container))
        DIST.mkdir(exist_ok=True)
        (DIST / name).write_bytes((root / FOLDER / name).read_bytes())
    finally:
        _buildah("rm", container)
    return DIST / name


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise images.BuildError(f"buildah {arguments[0]} failed:\n{done.stderr}")
    return done.stdout.strip()


def main() -> int:
    try:
        for target in images.TARGETS:
            print(copy(target).relative_to(images.CHECKOUT))
    except (images.BuildError, cluster.ClusterError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
