"""kubectl and helm as functions, and a pod to reach volumes through.

Called by the cluster playbook. Whatever fails is a `DemoError` with the tool's own words.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_MINUTES = 15
"""Time for a pod to start: the trainer's image has gigabytes, and a node may have to pull it first."""


class DemoError(Exception):
    """What went wrong and what to do, for a person."""


@dataclass(frozen=True)
class Kubectl:
    """One cluster, one namespace. `env` has the KUBECONFIG and the PATH."""

    env: Mapping[str, str]
    namespace: str
    context: str | None = None

    def __call__(self, *arguments: str, given: bytes | None = None) -> str:
        """Run kubectl; what it printed."""
        return self.output(*arguments, given=given).decode()

    def output(self, *arguments: str, given: bytes | None = None) -> bytes:
        """The same, for what isn't text."""
        flags = ["--namespace", self.namespace] + (["--context", self.context] if self.context else [])
        return run(["kubectl", *flags, *arguments], self.env, given)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """An object, or None."""
        found = self("get", kind, name, "--ignore-not-found", "--output=json")
        return json.loads(found) if found.strip() else None

    def apply(self, *manifests: dict[str, Any]) -> None:
        """kubectl apply."""
        self(
            "apply", "--filename=-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}).encode()
        )

    @contextmanager
    def pod(self, manifest: dict[str, Any]) -> Iterator["Pod"]:
        """A pod that is Ready, and gone afterwards."""
        name = manifest["metadata"]["name"]
        self.remove("pod", name)
        self.apply(manifest)
        try:
            try:
                self("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={START_MINUTES}m")
            except DemoError as error:
                raise DemoError(f"{error}\n{self._why(name)}") from None
            yield Pod(self, name)
        finally:
            self.remove("pod", name)

    def remove(self, kind: str, name: str) -> None:
        """Delete and wait until it is gone. Without a grace period: it is only used for what holds no state."""
        self("delete", kind, name, "--ignore-not-found", "--grace-period=1", "--wait=true", "--timeout=120s")

    def _why(self, pod: str) -> str:
        return self("get", "events", f"--field-selector=involvedObject.name={pod}", "--sort-by=.lastTimestamp")


@dataclass(frozen=True)
class Pod:
    """A running pod, to run commands in."""

    kubectl: Kubectl
    name: str

    def __call__(self, *command: str, given: bytes | None = None) -> str:
        """Run a command; what it printed."""
        return self.output(*command, given=given).decode()

    def output(self, *command: str, given: bytes | None = None) -> bytes:
        """The same, for what isn't text."""
        return self.kubectl.output(
            "exec", self.name, *(["--stdin"] if given is not None else []), "--", *command, given=given
        )

    def upload(self, source: Path, target: str) -> None:
        """Copy a folder's content; `target` is there when this has returned, or it isn't at all."""
        part = f"{target}.part"
        self("sh", "-c", f"rm -rf {part} {target} && mkdir -p {part}")
        flags = ["--namespace", self.kubectl.namespace]
        if self.kubectl.context:
            flags += ["--context", self.kubectl.context]
        packed = subprocess.Popen(["tar", "--create", "--directory", str(source), "."], stdout=subprocess.PIPE)
        unpack = ["kubectl", *flags, "exec", self.name, "--stdin", "--", "tar", "--extract", "--directory", part]
        done = subprocess.run(unpack, stdin=packed.stdout, capture_output=True, env=dict(self.kubectl.env))
        if packed.wait() != 0 or done.returncode != 0:
            raise DemoError(f"could not copy {source} to the volume: {done.stderr.decode().strip()}")
        self("mv", part, target)

    def download(self, source: str, target: Path) -> None:
        """Copy a folder's files out of the volume."""
        target.mkdir(parents=True, exist_ok=True)
        packed = self.output("tar", "--create", "--directory", source, ".")
        subprocess.run(["tar", "--extract", "--directory", str(target)], input=packed, check=True)


def helm(env: Mapping[str, str], context: str | None, *arguments: str) -> str:
    """Run helm; what it printed."""
    return run(["helm", *arguments, *(["--kube-context", context] if context else [])], env).decode()


def run(command: list[str], env: Mapping[str, str], given: bytes | None = None) -> bytes:
    """Run a program. `input=b""` in place of none keeps it from reading the terminal."""
    program = shutil.which(command[0], path=env.get("PATH"))
    if program is None:
        raise DemoError(f"{command[0]} is not on the PATH; the demo on a cluster of yours needs kubectl and helm")
    done = subprocess.run([program, *command[1:]], input=given or b"", capture_output=True, env=dict(env))
    if done.returncode != 0:
        shown = " ".join(command[:12])
        raise DemoError(f"`{shown}` failed:\n{(done.stderr or done.stdout).decode(errors='replace').strip()}")
    return done.stdout
