"""`finetune ui`: what it says without the page's package, and how it starts the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_cli import page_command
from finetune_cli.app import app
from finetune_cli.problem import Problem
from typer.testing import CliRunner

CONFIG = """
current-context: here
contexts: [{name: here, context: {cluster: c, user: u, namespace: team}}]
clusters: [{name: c, cluster: {server: "https://api.example"}}]
users: [{name: u, user: {token: secret}}]
"""


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_command, "PACKAGE", "finetune_ui_that_is_missing")
    with pytest.raises(Problem, match=r"pip install \./ui"):
        page_command._server()


def test_the_page_acts_as_the_user_of_the_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(CONFIG)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    called: list[Any] = []

    class Module:
        @staticmethod
        def on_laptop(*arguments: Any) -> None:
            called.extend(arguments)

    monkeypatch.setattr(page_command, "_server", lambda: Module)
    assert CliRunner().invoke(app, ["ui", "--port", "8081", "--no-browser", "-n", "mine"]).exit_code == 0
    server, port, browser = called
    assert (server.server, server.namespace, server.user) == ("https://api.example", "mine", {"token": "secret"})
    assert (port, browser) == (8081, False)
