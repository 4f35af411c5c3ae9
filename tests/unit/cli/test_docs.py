"""docs/cli.md has every verb and every exit code, and the program starts fast enough for completion. What commands on
pages use is tried in tests/unit/docs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from finetune_cli.app import app
from finetune_cli.problem import Exit

PAGE = Path("docs/cli.md").read_text()
VERBS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = {"torch", "rich", "kubernetes", "pydantic", "yaml", "finetune_api", "finetune_trainer", "http.client", "ssl"}


def first_cells(title: str) -> set[str]:
    table = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return {line.split("|")[1].strip(" `") for line in table.splitlines() if line.startswith("| ")} - {
        "verb",
        "code",
        "---",
    }


def test_the_page_has_every_verb() -> None:
    assert first_cells("Verbs") == VERBS


def test_the_list_of_commands_is_not_cut() -> None:
    """On a terminal of 80 columns: click ends what is too long with three dots."""
    command = typer.main.get_command(app)
    width = 80 - 2 - 6 - max(map(len, VERBS))
    for name, each in command.commands.items():  # type: ignore[attr-defined]
        assert not each.get_short_help_str(width).endswith("..."), name


def test_the_page_has_every_exit_code() -> None:
    assert first_cells("Exit codes") == {str(code.value) for code in Exit}


def loaded(words: str, program: str = "finetune_cli.__main__", **environment: str) -> set[str]:
    """The modules of a process that has run the program."""
    code = (
        f"import sys; sys.argv = ['finetune', *{words.split()}]\n"
        f"from {program} import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('LOADED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    found = set(done.stdout.rpartition("LOADED")[2].split())
    assert "finetune_cli.app" in found
    return found


# What is imported decides how long a start takes; a test that measures time would fail on busy machines.
@pytest.mark.parametrize("words", ["--help", "list --help", "run --help"])
def test_help_loads_nothing_that_takes_long(words: str) -> None:
    assert not HEAVY & loaded(words)


def test_completion_loads_nothing_that_takes_long() -> None:
    asked = {"_FINETUNE_COMPLETE": "complete_bash", "COMP_WORDS": "finetune wa", "COMP_CWORD": "1"}
    assert not HEAVY & loaded("", **asked)
    assert not HEAVY & loaded("list --n", "finetune_cli.kubectl_completion")
    # Names of jobs come from the cluster.
    cluster = loaded("why a", "finetune_cli.kubectl_completion", KUBECONFIG="/does/not/exist")
    assert not {"torch", "rich", "pydantic", "finetune_api"} & cluster


@pytest.mark.parametrize(
    "words", ["list -n team -A", "why my-job", "watch my-job", "logs -f my-job", "stop a b --keep"]
)
def test_a_command_that_only_asks_the_cluster_needs_no_models(words: str) -> None:
    assert not {"torch", "rich", "pydantic", "finetune_api"} & loaded(words, KUBECONFIG="/does/not/exist")


def test_kubectl_gets_candidates_and_a_directive() -> None:
    program = (
        "import sys; sys.argv = ['kubectl_complete-finetune', 'w']\n"
        "from finetune_cli.kubectl_completion import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["why", "watch", ":4"]
