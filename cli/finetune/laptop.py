"""Jobs on this machine: each is a process of the trainer, whose results lie in a workspace as in a cluster.

A job is a folder of `<workspace>/local`, with the job's file, its log, and the exit code when it has ended. So a
notebook that starts again finds its jobs.
"""

import contextlib
import json
import os
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
        log = results / "reports" / "trainer_log.jsonl"
        seen = _newest(log)
        progress = _progress(seen) if seen else None
        if not self._ended(folder):
            return {"phase": "Running" if progress else "Preparing", "progress": progress}
        code = int((folder / "exit").read_text()) if (folder / "exit").exists() else Exit.FAILED
        lines = (folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        ended = time.gmtime((folder / "exit").stat().st_mtime if (folder / "exit").exists() else None)
        done = code == 0
        return {
            "phase": "Succeeded" if done else "Failed",
            "message": lines[-1][:1024] if lines else f"the trainer ended with {code}",
            "progress": progress,
            "completionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", ended),
            "artifact": {"uri": str(results / "artifact")} if done else None,
            "metrics": _metrics(results / "reports" / "all_results.json") if done else None,
        }

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


def _newest(log: Path) -> dict[str, Any] | None:
    """The newest logged step."""
    if not log.exists():
        return None
    for line in reversed(log.read_text(encoding="utf-8").splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if "total_steps" in found:
            return dict(found)
    return None


def _progress(seen: dict[str, Any]) -> dict[str, Any]:
    step, total = int(seen.get("current_steps", 0)), int(seen["total_steps"])
    percent = 100 * step // max(1, total)
    found = {
        "kind": "train",
        "step": step,
        "totalSteps": total,
        "percent": percent,
        "summary": f"{step}/{total} ({percent}%)",
    }
    return {**found, **({"loss": f"{float(seen['loss']):.4f}"} if seen.get("loss") is not None else {})}


def _metrics(file: Path) -> dict[str, str] | None:
    if not file.exists():
        return None
    loaded = json.loads(file.read_text(encoding="utf-8"))
    return {name: str(value) for name, value in loaded.items() if isinstance(value, int | float)}
