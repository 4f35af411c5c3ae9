"""Words and patterns that no text for people may contain, and the files that are checked.

`BANNED` and `SCOPES` are data. `tests/unit/test_words.py` checks them, and a text is what `texts` returns: docstrings,
comments and string literals of Python files, comments and strings of YAML files, and Markdown without code.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import yaml

SCOPES = [
    "README.md",
    "charts/**/values.yaml",
    "charts/**/*.txt",
    "charts/**/*.md",
    "charts/**/*.py",
    "crds/finetune_api/**/*.py",
    "crds/finetunejobs.yaml",
    "cli/**/*.py",
    "docs/*.md",
    "docs/decisions/*.md",
    "docs/stages/*.md",
    "docs/*.yaml",
    "examples/**/*.py",
    "examples/**/*.yaml",
    "operator/finetune_operator/**/*.py",
    "ui/finetune_ui/**/*.py",
    "ui/finetune_ui/texts/*.yaml",
    "tests/*.py",
    "tests/bench/*.py",
    "tests/chart_audit/*.py",
    "tests/chart_values/*.py",
    "tests/cluster/*.py",
    "tests/controlplane/*.py",
    "tests/docsite/*.py",
    "tests/e2e/*.py",
    "tests/helm/*.py",
    "tests/trainer/**/*.py",
    "tests/unit/*/**/*.py",
    "trainer_image/finetune_trainer/**/*.py",
]
"""Paths, relative to the root of the repository, whose texts are checked. `**` matches directories of any depth."""

_DETERMINER = r"\b(?:an?|the|this|that|its|their|your|our|another|each|every|either|any|such)"
_ADJECTIVE = r"(?: (?!(?:is|was|are|has|had|to|of|as|at|by|in|on|for|with|from|or|and|than|only)\b)\w+)?"
_NO_NOUN = (
    r"(?=[.,;:)\]]|$| (?:is|are|was|has|had|can|cannot|will|may|must|of|from|in|on|at|to|and|or|which|whose|that|as)\b)"
)
BANNED: dict[str, str] = {
    r"\banew\b": "again",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\b(?:go|goes|going|went|gone) on\b": "continue, resume",
    r"\bstays? so\b(?! that)": "is final, does not change",
    r"\bwhat there is\b": "name the thing",
    r"\bthere (?:is|are) (?:none|no such)\b": "does not exist",
    r"\b(?:is|are|was|were|be|been) (?:told|said)\b": "say who reports what",
    r"\bwhere it stands\b": "state, progress",
    r"\bas things stand\b": "now",
    r"\b(?:becomes?|became) of\b": "happens to",
    r"\bhangs? on\b": "depends on",
    r"\bin the midst of\b": "during, while",
    r"\bby hand of\b": "by",
    r"\bmake-believe\b": "simulated",
    r"\b(?:need|must|might|ought|dare|shall|may)n't\b|\bshan't\b": "need not, must not",
    _DETERMINER + _ADJECTIVE + " one" + _NO_NOUN: "repeat the noun",
    r"(?<!and\x20)\bones\b": "repeat the noun",
    r"\bone(?:'s| of (?:its|their|your|our)) own\b": "its own, your own",
    r"(?:^|[.!?:] )Of (?:an?|the|these|those|them|this|it|each|all|which)\b": "start with the subject",
    r"\bwhat has (?:failed|succeeded)\b": "a job that has failed",
}
"""Pattern -> what to write instead. Patterns ignore case, except the pattern for sentences that start with Of."""
PATTERNS = {
    # A space of a pattern also matches the end of a line and the indentation of the next line.
    re.compile(pattern.replace(" ", r"\s+"), 0 if "Of " in pattern else re.IGNORECASE): advice
    for pattern, advice in BANNED.items()
}


def violations(text: str) -> Iterator[tuple[int, str, str]]:
    """(line in the text from 0, banned words, what to write instead) for every banned pattern in a text."""
    for pattern, advice in PATTERNS.items():
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()), " ".join(match[0].split()), advice


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every text for people in a file."""
    content = path.read_text()
    if path.suffix == ".py":
        yield from _strings(content)
        yield from _comments(content)
    elif path.suffix in (".yaml", ".yml"):
        yield from _yaml_comments(content)
        yield from _yaml_strings(content)
    else:
        yield from _paragraphs(content)


def _strings(content: str) -> Iterator[tuple[int, str]]:
    """String literals and docstrings; an expression in an f-string becomes a placeholder."""
    tree = ast.parse(content)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(_text_of(part) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def _text_of(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "X"


def _comments(content: str) -> Iterator[tuple[int, str]]:
    """Comments; comments on consecutive lines are a single text."""
    lines = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(content).readline)
        if token.type == tokenize.COMMENT
    }
    yield from _joined(lines)


def _yaml_comments(content: str) -> Iterator[tuple[int, str]]:
    numbered = enumerate(content.splitlines(), start=1)
    yield from _joined({number: line.strip(" #") for number, line in numbered if line.lstrip().startswith("#")})


def _yaml_strings(content: str) -> Iterator[tuple[int, str]]:
    for token in yaml.scan(content):
        if isinstance(token, yaml.ScalarToken):
            yield token.start_mark.line + 1, token.value


def _joined(lines: dict[int, str]) -> Iterator[tuple[int, str]]:
    first, parts = 0, list[str]()
    for number, line in sorted(lines.items()):
        if first and number == first + len(parts):
            parts.append(line)
            continue
        if parts:
            yield first, "\n".join(parts)
        first, parts = number, [line]
    if parts:
        yield first, "\n".join(parts)


def _paragraphs(content: str) -> Iterator[tuple[int, str]]:
    """Paragraphs, list items and table rows of Markdown, without code blocks and code spans."""
    number, code = 1, False
    for block in re.split(r"(\n\s*\n|\n(?=\s*[-*|#]|\s*\d+\. |```))", content):
        if block.lstrip().startswith("```"):
            code = not code if block.count("```") % 2 else code
        elif not code:
            yield number, re.sub(r"`[^`]*`", "X", block)
        number += block.count("\n")
