"""Run the Go toolchain without leaving its caches behind: what all programs need to be built has 14 GB.

Called by whatever builds a Go program, and by whoever needs the files of a module.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import packages
from tests.cluster.state import ClusterError, cache_root, lock


@contextlib.contextmanager
def building(name: str) -> Iterator[dict[str, str]]:
    """The environment for the builds of one name, of which only one runs at a time. Its caches are removed at the end;
    those of a build that was killed serve the next."""
    with lock(name):
        caches = cache_root() / "go-caches" / name
        yield _environment(caches / "modules") | {"GOCACHE": str(caches / "packages")}
        shutil.rmtree(caches, ignore_errors=True)


def flags(*linked: str) -> list[str]:
    """For `go build`, with further flags for its linker."""
    # No debug information: the compiler would make it for each package, and the linker would strip it.
    return ["-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false", f"-ldflags={' '.join(['-s', '-w', *linked])}"]


def build(folder: Path, package: str, target: Path, flags: list[str], env: dict[str, str]) -> None:
    """Build a package of the module in `folder`. The target appears complete or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    # Tests that wait for something may run at the same time.
    command = ["nice", packages.go(), "build", *flags, "-o", str(unfinished), package]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise ClusterError(f"building {target.name} failed:\n{done.stderr[-3000:]}")
    unfinished.replace(target)


def source(folder: Path, dependency: str) -> Path:
    """The folder with the files of a dependency, at the version that the module in `folder` pins."""
    env = _environment(cache_root() / "go-sources")
    done = subprocess.run(
        [packages.go(), "mod", "download", "-json", dependency], cwd=folder, env=env, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise ClusterError(f"downloading {dependency} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return Path(json.loads(done.stdout)["Dir"])


def _environment(modules: Path) -> dict[str, str]:
    # Use exactly our toolchain: Go must not download another, and must ignore workspace files above the checkout.
    own = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-modcacherw"}
    return {**os.environ, **own, "GOMODCACHE": str(modules)}
