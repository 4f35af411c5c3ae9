"""The samples of README.md, for tests that produce the same output and compare it.

A sample is a command after `$ ` in a code block, and its output. Where a sample is cut, it has `…`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
CUT = "…"
PREPARE = "python -m finetune_trainer prepare --job job.yaml --workspace ./workspace --volume models=./models"
"""The sample that the tests of the trainer produce."""


def blocks() -> list[str]:
    """The code blocks."""
    return re.findall(r"^```\w*\n(.*?)^```", (CHECKOUT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def sample(command: str) -> list[str]:
    """The lines that the README shows for a command."""
    [shown] = [block for block in blocks() if block.startswith(f"$ {command}\n")]
    return shown.splitlines()[1:]


def commands() -> Iterator[str]:
    """The commands that the README tells people to run, without comments. One may have several lines."""
    for block in blocks():
        if not block.startswith("$ "):
            for command in re.sub(r"\\\n\s*", "", block).splitlines():
                yield command.partition(" #")[0].rstrip()


def table(lines: list[str]) -> list[dict[str, str]]:
    """The rows of kubectl's table, by column."""
    header = lines[0]
    starts = [match.start() for match in re.finditer(r"(?:^|(?<=  ))\S", header)]
    ends = [*starts[1:], None]
    names = [header[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    return [
        {name: line[start:end].strip() for name, start, end in zip(names, starts, ends, strict=True)}
        for line in lines[1:]
    ]


def shows(shown: str, real: str) -> bool:
    """Whether a text of the README is the real text. Digits and letters that are random differ, and it may be cut."""
    shown, real = _without_random(shown), _without_random(real)
    return real.startswith(shown.removesuffix(CUT)) if shown.endswith(CUT) else real == shown


def _without_random(text: str) -> str:
    """The uid in the name of an attempt's pod, the pod's suffix, and the time of a line of a log."""
    text = re.sub(r"-[0-9a-f]{5}-(p?\d+)-(\d+)-[a-z0-9]{5}\b", r"-UID-\1-\2-POD", text)
    return re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", "TIME", text)
