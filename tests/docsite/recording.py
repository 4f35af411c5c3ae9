"""Run the commands of docs/tutorial.md as they stand, and record what they print.

`python -m tests.docsite.recording` writes docs/tutorial-recording.md. Run `make demo` and `make demo-laptop` before,
and set KUBECONFIG. What an earlier run left on this machine is removed, so that the training is recorded, and not only
its result. Tests run the same commands on a tiny model.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docsite.pages import FENCE

CHECKOUT = Path(__file__).resolve().parents[2]
TUTORIAL, RECORDING = CHECKOUT / "docs" / "tutorial.md", CHECKOUT / "docs" / "tutorial-recording.md"
LEFT = CHECKOUT / "build" / "tutorial"
"""The workspace of the part for a laptop: a job that has ended there would not be trained again."""
LAPTOP, CLUSTER, MISTAKE = "On a laptop", "On a cluster", "Make a mistake"
RUN = ("finetune ", "kubectl ", "python ", "ls ")
"""How the commands begin that are recorded. The others set up, or are for another cluster."""
FAILS = "--name my-mistake"
"""The command that is to fail, with the exit code of a job that has failed."""
FAILED = 1
LONGEST = 15 * 60
"""Seconds for a command: some train."""
HEAD = """# The tutorial, recorded

What the commands of the [tutorial](tutorial.md) print, on a machine with two cores, other work and no GPU.
`python -m tests.docsite.recording` makes this page from a real run; times are those of that machine.
"""


@dataclass(frozen=True)
class Step:
    """A command, what it printed on both streams, and its exit code."""

    command: str
    output: str
    code: int

    @property
    def expected(self) -> int:
        return FAILED if FAILS in self.command and self.command.startswith("finetune run") else 0


def commands(section: str) -> Iterator[str]:
    """The recorded commands of a section. A command may have several lines."""
    text = TUTORIAL.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    for block in FENCE.finditer(text):
        for command in re.split(r"(?<!\\)\n", block["text"].strip()):
            if command.startswith(RUN):
                yield command


def play(
    section: str, environment: Mapping[str, str], adapt: Callable[[str], str] = lambda command: command
) -> Iterator[Step]:
    """Run the commands of a section, one after the other. `adapt` changes what is run, not what is recorded."""
    inherited = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", **environment}
    inherited["PATH"] = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    for command in commands(section):
        done = subprocess.run(
            ["bash", "-c", adapt(command)],
            cwd=CHECKOUT,
            env=inherited,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST,
        )
        yield Step(command, done.stdout, done.returncode)


def page(sections: Mapping[str, list[Step]]) -> str:
    """The recording as Markdown. Paths in the checkout are relative."""
    parts = [HEAD]
    for section, steps in sections.items():
        parts.append(f"\n## {section}\n")
        for step in steps:
            output = step.output.rstrip().replace(f"{CHECKOUT}/", "")
            fence = _fence(output)
            parts.append(f"\n{fence}text\n$ {step.command}\n{output}\n{fence}\n")
    return "".join(parts)


def _fence(output: str) -> str:
    """One that is longer than those in the output: a report has some."""
    return "`" * max([3, *(len(found) + 1 for found in re.findall(r"^`{3,}", output, re.MULTILINE))])


def recorded_commands(text: str) -> list[str]:
    """The commands of a recording, in order."""
    return [
        re.split(r"(?<!\\)\n", block["text"].removeprefix("$ "), maxsplit=1)[0]
        for block in FENCE.finditer(text)
        if block["text"].startswith("$ ")
    ]


def main() -> int:
    shutil.rmtree(LEFT, ignore_errors=True)
    recorded: dict[str, list[Step]] = {}
    for section in (LAPTOP, CLUSTER, MISTAKE):
        recorded[section] = []
        for step in play(section, {}):
            print(f"$ {step.command}\n{step.output}", flush=True)
            if step.code != step.expected:
                print(f"exit code {step.code}, not {step.expected}: nothing is written", file=sys.stderr)
                return 1
            recorded[section].append(step)
    RECORDING.write_text(page(recorded), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
