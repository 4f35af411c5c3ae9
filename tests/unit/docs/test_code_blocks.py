"""The code on the pages is right: YAML is valid for the API, commands exist with their options, targets and files."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from finetune_api.job import FineTuneJob
from finetune_api.spec import FineTuneJobSpec
from finetune_cli.app import app
from pydantic import TypeAdapter, ValidationError

from tests.docsite.pages import blocks, commands

COMMANDS = list(commands())
SECTIONS = {field.alias or name: field for name, field in FineTuneJobSpec.model_fields.items()}
FOLDERS = ("examples/", "charts/", "crds/", "trainer_image/", "tests/", "cli/")
FOREIGN = {"examples/train_lora/qwen3_lora_dpo.yaml"}
"""Files of LLaMA-Factory."""
ABBREVIATED = re.compile(r"[…*<>{}$]|\.\.\.|^[A-Z_]+$")
"""A word that stands for others, such as NAME, and is not checked."""


def parsed() -> Iterator[tuple[str, Any]]:
    for block in blocks("yaml"):
        for document in yaml.safe_load_all(block.text):
            yield block.title, document


YAML = list(parsed())


def test_pages_have_code_of_each_kind() -> None:
    assert len(YAML) > 25
    assert len(COMMANDS) > 200


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(each, id=where)
        for where, each in YAML
        if isinstance(each, dict) and each.get("kind") == "FineTuneJob"
    ],
)
def test_jobs_are_valid(job: dict[str, Any]) -> None:
    assert FineTuneJob.model_validate(job).spec.stage


def sections_of(document: Any) -> dict[str, Any]:
    """The sections of a spec that a fragment shows; empty if it is something else."""
    shown = document.get("spec", document) if isinstance(document, dict) and "kind" not in document else {}
    return shown if isinstance(shown, dict) and shown and set(shown) <= set(SECTIONS) else {}


FRAGMENTS = [pytest.param(sections_of(each), id=where) for where, each in YAML if sections_of(each)]


def test_there_are_fragments() -> None:
    assert len(FRAGMENTS) > 10


@pytest.mark.parametrize("sections", FRAGMENTS)
def test_fragments_of_a_spec_are_valid(sections: dict[str, Any]) -> None:
    """Each section by itself: a fragment leaves out the others. Fields that a section needs may be left out, too."""
    problems = []
    for name, value in sections.items():
        try:
            section: Any = SECTIONS[name].annotation
            TypeAdapter(section).validate_python(value)
        except ValidationError as error:
            problems += [f"{name}: {e['loc']}: {e['msg']}" for e in error.errors() if e["type"] != "missing"]
    assert [problem for problem in problems if "set exactly one of" not in problem] == []


@pytest.mark.parametrize("block", [pytest.param(each, id=each.title) for each in blocks("python", "json")])
def test_python_and_json_parse(block: Any) -> None:
    if block.language == "python":
        assert ast.parse(block.text).body
    else:
        assert json.loads(block.text)


@cache
def options() -> dict[str, set[str]]:
    """Verb of `finetune` -> its options."""
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
        | {"--help", "-h"}
        for name, verb in verbs.items()
    }


def test_finetune_is_called_with_verbs_and_options_that_exist() -> None:
    wrong, used = [], set()
    for where, words in COMMANDS:
        words = words[1:] if words[:2] == ["kubectl", "finetune"] else words
        if words[0] != "finetune" or len(words) < 2 or ABBREVIATED.search(words[1]) or words[1].startswith("-"):
            continue
        verb, *rest = words[1:]
        own = rest[: rest.index("--")] if "--" in rest else rest
        given = {word.partition("=")[0] for word in own if word.startswith("-") and word != "-"}
        if verb not in options() or not given <= options()[verb]:
            wrong.append((where, " ".join(words)))
        used.add(verb)
    assert wrong == []
    assert {"run", "new", "validate", "import", "why", "retry", "doctor"} <= used


def test_targets_of_make_exist() -> None:
    makefiles = Path("Makefile").read_text() + Path("tests/cluster/cluster.mk").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefiles, re.MULTILINE))
    called = {(words[1], where) for where, words in COMMANDS if words[0] == "make" and len(words) > 1}
    named = {(target, where) for target, where in called if re.fullmatch(r"[a-z-]+", target)}
    assert [each for each in named if each[0] not in targets] == []
    assert {"demo", "demo-laptop", "docs", "check"} <= {target for target, _ in named}


def test_files_and_modules_that_commands_name_exist() -> None:
    missing = []
    for where, words in COMMANDS:
        for before, word in zip(["", *words], words, strict=False):
            path = word.removeprefix("./").rstrip("/,:")
            file = path.startswith(FOLDERS) and not ABBREVIATED.search(path) and not Path(path).exists()
            if before == "-m" and re.fullmatch(r"(tests|examples)(\.\w+)+", word):
                module = Path(word.replace(".", "/"))
                file = not module.is_dir() and not module.with_suffix(".py").is_file()
            if file and " " not in word and word not in FOREIGN:
                missing.append((where, word))
    assert missing == []
