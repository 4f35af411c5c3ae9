"""kubectl and helm as functions, and a pod that gives access to volumes.

Called by the cluster playbook. A failure is a `DemoError` with the output of the tool.
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
"""The time that a pod may take to start. A node may first have to pull the trainer's image, which has gigabytes."""


class DemoError(Exception):
    """Says what went wrong and what to do."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl for a cluster and a namespace. `env` has the KUBECONFIG and the PATH."""

    env: Mapping[str, str]
    namespace: str
    context: str | None = None

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run kubectl. Returns its output."""
        return self.output(*arguments, stdin=stdin).decode()

    def output(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        """The same for binary output."""
        flags = ["--namespace", self.namespace] + (["--context", self.context] if self.context else [])
        return run(["kubectl", *flags, *arguments], self.env, stdin)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """An object, or None."""
        text = self("get", kind, name, "--ignore-not-found", "--output=json")
        return json.loads(text) if text.strip() else None

    def apply(self, *manifests: dict[str, Any]) -> None:
        """kubectl apply."""
        self(
            "apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}).encode()
        )

    @contextmanager
    def pod(self, manifest: dict[str, Any]) -> Iterator["Pod"]:
        """A Ready pod, which is deleted afterwards."""
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
        """Delete an object and wait until it is gone. The grace period is short, so the object must hold no state."""
        self("delete", kind, name, "--ignore-not-found", "--grace-period=1", "--wait=true", "--timeout=120s")

    def _why(self, pod: str) -> str:
        return self("get", "events", f"--field-selector=involvedObject.name={pod}", "--sort-by=.lastTimestamp")


@dataclass(frozen=True)
class Pod:
    """A running pod, to run commands in."""

    kubectl: Kubectl
    name: str

    def __call__(self, *command: str, stdin: bytes | None = None) -> str:
        """Run a command. Returns its output."""
        return self.output(*command, stdin=stdin).decode()

    def output(self, *command: str, stdin: bytes | None = None) -> bytes:
        """The same for binary output."""
        return self.kubectl.output(
            "exec", self.name, *(["--stdin"] if stdin is not None else []), "--", *command, stdin=stdin
        )

    def upload(self, source: Path, target: str) -> None:
        """Copy the content of a folder. `target` appears only when the copy is complete."""
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
        """Copy the files of a folder out of the volume."""
        target.mkdir(parents=True, exist_ok=True)
        packed = self.output("tar", "--create", "--directory", source, ".")
        subprocess.run(["tar", "--extract", "--directory", str(target)], input=packed, check=True)


def helm(env: Mapping[str, str], context: str | None, *arguments: str) -> str:
    """Run helm. Returns its output."""
    return run(["helm", *arguments, *(["--kube-context", context] if context else [])], env).decode()


def run(command: list[str], env: Mapping[str, str], stdin: bytes | None = None) -> bytes:
    """Run a program. Returns its output. An empty input keeps it from reading the terminal."""
    program = shutil.which(command[0], path=env.get("PATH"))
    if program is None:
        raise DemoError(
            f"{command[0]} is not on the PATH. The demo on your own cluster needs kubectl and helm. Install them"
        )
    done = subprocess.run([program, *command[1:]], input=stdin or b"", capture_output=True, env=dict(env))
    if done.returncode != 0:
        shown = " ".join(command[:12])
        raise DemoError(f"`{shown}` failed:\n{(done.stderr or done.stdout).decode(errors='replace').strip()}")
    return done.stdout
