"""Jobs on this machine: each is a process of the trainer, whose results lie in a workspace as in a cluster.

A job is a folder of `<workspace>/local`, with the job's file, its log, and the exit code when it has ended. So a
notebook that starts again finds its jobs.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_cli import clock, local
from finetune_cli.output import to_yaml
from finetune_cli.problem import Exit, Problem

from finetune.job import Event

PAUSE_SECONDS = 0.5
END_SECONDS = 30.0
TAIL_BYTES = 1 << 16
PREPARING = ("Fetching", "Validating", "Tokenizing")


class Laptop:
    """A back end of `TrainerClient`."""

    def __init__(self, workspace: Path, volumes: dict[str, Path]) -> None:
        self._workspace = workspace.resolve()
        self._volumes = volumes

    def create(self, job: dict[str, Any]) -> str:
        """Start the trainer."""
        name = str(job["metadata"]["name"])
        folder = self._folder(name)
        if folder.exists():
            raise Problem(f"A job {name} exists in {self._workspace}: choose another name, or delete it.", Exit.REFUSED)
        places = [word for claim, place in self._volumes.items() for word in ("--volume", f"{claim}={place}")]
        words = local.command("train", "--job", str(folder / "job.yaml"), "--workspace", str(self._workspace), *places)
        folder.mkdir(parents=True)
        job = {**job, "metadata": {**job["metadata"], "creationTimestamp": f"{clock.now():%Y-%m-%dT%H:%M:%SZ}"}}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        plain = {**job, "metadata": {"name": name}}
        (folder / "job.yaml").write_text(to_yaml(plain), encoding="utf-8")
        # The shell writes the exit code, also if this program has ended by then.
        script = '"$@"; code=$?; echo $code > "$0.part"; mv "$0.part" "$0"'
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["sh", "-c", script, str(folder / "exit"), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (folder / "pid").write_text(str(process.pid))
        return name

    def all(self) -> list[dict[str, Any]]:
        """The jobs of the workspace, oldest first."""
        found = [self.get(path.parent.name) for path in (self._workspace / "local").glob("*/job.json")]
        return sorted(found, key=lambda job: str(job["metadata"]["creationTimestamp"]))

    def get(self, name: str) -> dict[str, Any]:
        """The job, with a status made of what lies in the workspace."""
        folder = self._existing(name)
        job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        job["status"] = {key: value for key, value in self._status(name, folder).items() if value is not None}
        return job

    def logs(self, name: str, follow: bool) -> Iterator[str]:
        """The lines of the log."""
        folder = self._existing(name)
        with (folder / "log").open(encoding="utf-8", errors="replace") as log:
            rest = ""
            while True:
                over = not follow or self._ended(folder)
                while text := log.readline():
                    rest += text
                    if rest.endswith("\n"):
                        yield rest[:-1]
                        rest = ""
                if over:
                    break
                time.sleep(PAUSE_SECONDS)
            if rest:
                yield rest

    def events(self, name: str) -> list[Event]:
        """When the job was created and how it ended."""
        job = self.get(name)
        status = job["status"]
        found = [Event(str(job["metadata"]["creationTimestamp"]), "Created", "")]
        if status.get("completionTime"):
            found.append(Event(status["completionTime"], status["phase"], status.get("message", "")))
        return found

    def delete(self, name: str) -> None:
        """End the trainer, which saves, and forget the job. Its results stay in the workspace."""
        folder = self._existing(name)
        if not self._ended(folder):
            os.killpg(int((folder / "pid").read_text()), signal.SIGTERM)
            end = time.monotonic() + END_SECONDS
            while not self._ended(folder) and time.monotonic() < end:
                time.sleep(PAUSE_SECONDS)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    def _status(self, name: str, folder: Path) -> dict[str, Any]:
        results = self._workspace / "jobs" / name
        reported = results / "reports" / "status.json"
        progress = (_read(reported).get("status") or {}).get("progress")
        if progress and reported.stat().st_mtime < (folder / "job.json").stat().st_mtime:
            progress = None  # of an earlier job of this name
        if not self._ended(folder):
            prepares = not progress or progress.get("activity") in PREPARING
            return {"phase": "Preparing" if prepares else "Running", "progress": progress}
        code = int((folder / "exit").read_text()) if (folder / "exit").exists() else Exit.FAILED
        ended = time.gmtime((folder / "exit").stat().st_mtime if (folder / "exit").exists() else None)
        reason, message = _end(folder / "log", code)
        found = {
            "phase": "Failed" if code else "Succeeded",
            "reason": reason,
            "message": message[:1024],
            "progress": progress,
            "completionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", ended),
        }
        if code:
            return found
        result = _read(results / "RESULT.json").get("result") or {}
        artifact = {**(result.get("artifact") or {}), "uri": str(results / "artifact")}
        # If the workspace had the result already, nothing was trained now.
        progress = progress or (_read(reported).get("status") or {}).get("progress")
        return {**found, "artifact": artifact, "metrics": result.get("metrics"), "progress": progress}

    def _ended(self, folder: Path) -> bool:
        if (folder / "exit").exists():
            return True
        try:
            pid = int((folder / "pid").read_text())
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # a child that has ended is a zombie until somebody asks
            os.kill(pid, 0)
        except (OSError, ValueError):
            return True
        return False

    def _folder(self, name: str) -> Path:
        return self._workspace / "local" / name

    def _existing(self, name: str) -> Path:
        if not (self._folder(name) / "job.json").exists():
            raise Problem(f"There is no job {name} in {self._workspace}.", Exit.NOT_FOUND)
        return self._folder(name)


def _read(file: Path) -> dict[str, Any]:
    """A document of the trainer. Empty before it exists."""
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError):
        return {}


def _end(log: Path, code: int) -> tuple[str | None, str]:
    """The reason and the message with which the trainer ended; or the last line, if it could not say them."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace").strip()
    if found := re.search(r".*launch Ended with \d+ \((\w+)\): (.*)", text, re.DOTALL):
        return found[1], found[2]
    return None, text.splitlines()[-1] if text else f"the trainer ended with {code}"
