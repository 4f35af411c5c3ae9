"""`make docs` builds without a warning, so each link and anchor leads somewhere, and the site loads nothing from
elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docsite import hooks

BUILD = [sys.executable, "-m", "mkdocs", "build", "--quiet"]
ENV = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([*BUILD, "--site-dir", str(folder)], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {str(page.relative_to("docs").with_suffix(".html")) for page in Path("docs").rglob("*.md")}
    assert pages <= {str(file.relative_to(site)) for file in site.rglob("*.html")}


def test_the_nav_lists_every_decision(site: Path) -> None:
    shown = (site / "index.html").read_text(encoding="utf-8")
    listed = set(re.findall(r'href="decisions/([^"]+)\.html"', shown))
    assert listed == {file.stem for file in Path("docs/decisions").glob("*.md")}


def test_files_of_the_repository_are_shown(site: Path) -> None:
    shown = (site / "repository/examples/dpo.yaml.html").read_text(encoding="utf-8")
    assert "sftWeight" in shown


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/a.js"></script>',
        "<link rel=stylesheet href=//fonts.example/css>",
        '<img alt="x" src="http://example/a.png">',
    ],
)
def test_what_comes_from_another_host_is_found(html: str) -> None:
    assert hooks.REMOTE.search(html)


def test_a_link_is_nothing_that_is_loaded() -> None:
    assert not hooks.REMOTE.search('<a href="https://kueue.sigs.k8s.io">Kueue</a>')
