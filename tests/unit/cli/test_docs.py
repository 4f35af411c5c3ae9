"""docs/cli.md has every verb and every exit code, and the program starts fast enough for completion. What commands on
pages use is tried in tests/unit/docs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer.main
from finetune_cli.app import app
from finetune_cli.problem import Exit

PAGE = Path("docs/cli.md").read_text()
VERBS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = {"torch", "kubernetes", "pydantic", "yaml", "finetune_api", "finetune_trainer", "http.client", "ssl"}


def first_cells(title: str) -> set[str]:
    table = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return {line.split("|")[1].strip(" `") for line in table.splitlines() if line.startswith("| ")} - {
        "verb",
        "code",
        "---",
    }


def test_the_page_has_every_verb() -> None:
    assert first_cells("Verbs") == VERBS


def test_the_page_has_every_exit_code() -> None:
    assert first_cells("Exit codes") == {str(code.value) for code in Exit}


def test_help_loads_nothing_that_takes_long() -> None:
    """What --help imports decides how long completion takes; a test that measures time would fail on busy machines."""
    program = (
        "import sys; sys.argv = ['finetune', '--help']\n"
        "from finetune_cli.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "finetune_cli.app" in loaded
    assert not HEAVY & loaded


def test_kubectl_gets_candidates_and_a_directive() -> None:
    program = (
        "import sys; sys.argv = ['kubectl_complete-finetune', 'w']\n"
        "from finetune_cli.kubectl_completion import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["why", "watch", ":4"]
