"""What mkdocs does beside rendering docs/: it shows the files of the repository that pages link to, lists the decisions
in the nav, and refuses a page that loads something from another host.

mkdocs calls these functions by their names. A warning fails the build, because `mkdocs.yml` is strict.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.repository")

CHECKOUT = Path(__file__).resolve().parents[2]
SHOWN = "repository"
"""Folder of the site with the pages that show files of the repository."""
LINK = re.compile(r"(?<=\]\()(?P<path>(?:\.\./)+[^)#\s]*)(?P<anchor>#[^)\s]*)?(?=\))")
REMOTE = re.compile(
    r"<(?:script|img|iframe|source|video)\b[^>]*\ssrc=[\"']?(?:https?:)?//|<link\b[^>]*\shref=[\"']?(?:https?:)?//"
)
LANGUAGES = {".yaml": "yaml", ".py": "python", ".json": "json", ".jsonl": "json"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A folder in the nav stands for its files. Their names begin with their numbers."""
    assert config.nav is not None
    config.nav = [_with_files(entry, Path(config.docs_dir)) for entry in config.nav]
    return config


def _with_files(entry: Any, docs: Path) -> Any:
    if isinstance(entry, dict):
        return {
            title: sorted(str(file.relative_to(docs)) for file in (docs / inside).glob("*.md"))
            if isinstance(inside, str) and inside.endswith("/")
            else inside
            for title, inside in entry.items()
        }
    return entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file or folder of the repository that a page links to."""
    for page in list(files.documentation_pages()):
        for link in LINK.finditer(page.content_string):
            target = _outside(page.src_uri, link["path"])
            if target is None or files.get_file_from_path(_page_of(target)) is not None:
                continue
            if not (CHECKOUT / target).exists():
                log.warning("%s links to %s, which does not exist", page.src_uri, target)
                continue
            files.append(File.generated(config, _page_of(target), content=_content(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to the pages that show them, and links of these pages back to docs/."""
    source = page.file.src_uri
    folder = posixpath.dirname(source) or "."
    of_repository = source.startswith(f"{SHOWN}/")

    def shown(link: re.Match[str]) -> str:
        if of_repository:
            path = posixpath.normpath(posixpath.join(folder.removeprefix(f"{SHOWN}/"), link["path"]))
            target = path.removeprefix("docs/") if path.startswith("docs/") else None
        else:
            outside = _outside(source, link["path"])
            target = outside and _page_of(outside)
        return link[0] if target is None else posixpath.relpath(target, folder) + (link["anchor"] or "")

    return LINK.sub(shown, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Readers' browsers ask no other host for anything."""
    if remote := REMOTE.search(output):
        log.warning("%s loads something from another host: %s", page.file.src_uri, output[remote.start() :][:120])
    return output


def _outside(source: str, link: str) -> str | None:
    """The path in the repository that a link of a page leads to. None: it leads to a page of docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), link))
    return None if path.startswith("docs/") else path


def _page_of(path: str) -> str:
    return f"{SHOWN}/{path.removesuffix('.md')}.md"


def _content(path: str) -> str:
    """A page that shows a file, or lists the files of a folder. A Markdown file is a page as it is."""
    place = CHECKOUT / path
    if path.endswith(".md"):
        return place.read_text(encoding="utf-8")
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    if place.is_file():
        return head + _block(place)
    shown = (file for file in sorted(place.iterdir()) if file.is_file() and file.suffix in LANGUAGES)
    return head + "\n".join(f"## {file.name}\n\n{_block(file)}" for file in shown)


def _block(file: Path) -> str:
    return f"````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8').rstrip()}\n````\n"
