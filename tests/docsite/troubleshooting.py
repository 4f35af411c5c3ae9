"""docs/troubleshooting.md, made from docs/troubleshooting.yaml (cause and example of each reason), from the advice that
`finetune why` gives, and from the exit codes of the API.

`python -m tests.docsite.troubleshooting [--check]` writes, or compares, the two blocks of the page.
"""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from finetune_api.exit_codes import KILLED, REASONS, TERMINATED, EndClass, ExitCode, end_class
from finetune_api.status import Reason
from finetune_cli.importing.table import with_blocks, write_or_compare
from finetune_cli.turns import TURNS

PAGE, DATA = Path("docs/troubleshooting.md"), Path("docs/troubleshooting.yaml")
MORE_REASONS: dict[int, tuple[Reason, ...]] = {
    ExitCode.NOT_FOUND: (Reason.NOTHING_TO_KEEP,),
    ExitCode.INTERNAL_ERROR: (Reason.HARDWARE_ERROR,),
    ExitCode.WORKSPACE_UNUSABLE: (Reason.WORKSPACE_OCCUPIED,),
    KILLED: (Reason.OUT_OF_MEMORY, Reason.KILLED),
    TERMINATED: (Reason.KILLED,),
}
"""Reasons that share an exit code with the code's own reason. `Killed` and `OutOfMemory` have codes of the kernel."""
FOLLOWS = {
    EndClass.DONE: "The job has succeeded.",
    EndClass.USER_ERROR: "The job has Failed: another attempt would end in the same way.",
    EndClass.DISRUPTION: "The next attempt continues from the newest checkpoint. It does not count.",
    EndClass.FATAL: "The job has Failed. Somebody has to act before a retry.",
    EndClass.GPU_OUT_OF_MEMORY: "All processes start again with half the micro-batch. It does not count.",
    EndClass.RETRY: "A restart in the same pods, or the next attempt. It counts against `backoffLimit`.",
}


def codes() -> dict[int, tuple[Reason, ...]]:
    """Each exit code of the trainer's container, and the reasons that it may have."""
    own = {int(code): (reason,) for code, reason in REASONS.items()}
    return {code: own.get(code, ()) + MORE_REASONS.get(code, ()) for code in sorted({*own, *MORE_REASONS})}


def load() -> dict[str, dict[str, dict[str, str]]]:
    """The data: title of a group -> reason -> texts."""
    loaded: dict[str, Any] = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return loaded


def reasons() -> Iterator[str]:
    """A section for each reason, below the title of its group."""
    with_code = {reason: code for code, shared in reversed(codes().items()) for reason in shared}
    for title, group in load().items():
        yield f"## {title}\n"
        for reason, texts in group.items():
            code = with_code.get(Reason(reason))
            turn = TURNS[reason]
            advice = " ".join(filter(None, [turn.advice.replace("{name}", "NAME"), texts.get("do", "")]))
            yield f"### {reason}\n"
            yield _filled(texts["cause"] + (f" Exit code {code}." if code else ""))
            yield _filled(f"**It is {_turn(turn.whose)}.** {advice}")
            yield f"```text\n{_filled(texts['example'], 110)}```\n"


def _filled(text: str, width: int = 130) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) + "\n"


def _turn(whose: str) -> str:
    return {"you": "your turn", "nobody": "nobody's turn"}.get(whose, f"the turn of {whose}")


def exit_codes() -> Iterator[str]:
    """The table of exit codes."""
    yield "| code | reason | what follows |"
    yield "| --- | --- | --- |"
    for code, shared in codes().items():
        links = ", ".join(f"[{reason}](#{reason.lower()})" for reason in shared)
        yield f"| {code} | {links} | {FOLLOWS[end_class(code)]} |"


def page(text: str) -> str:
    """The page with its blocks made from the data."""
    blocks = {"Reasons": reasons(), "Exit codes": exit_codes()}
    return with_blocks(
        text, {title: "\n".join(lines).rstrip() for title, lines in blocks.items()}, "by `make generate`"
    )


if __name__ == "__main__":
    sys.exit(write_or_compare(PAGE, DATA, page))
