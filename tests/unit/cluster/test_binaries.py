"""When programs are built anew: whenever, and only when, what goes into them has changed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.cluster import binaries


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(binaries.MODULES, tmp_path / "modules")
    monkeypatch.setattr(binaries, "MODULES", tmp_path / "modules")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "modules"


@pytest.mark.parametrize("name", ["go.mod", "go.sum"])
def test_another_dependency_is_another_place(modules: Path, name: str) -> None:
    before = {program: binaries.path(program) for program in binaries.PROGRAMS}
    with (modules / "etcd" / name).open("a") as file:
        file.write("\n")
    changed = {program for program, path in before.items() if binaries.path(program) != path}
    assert changed == {"etcd"}


def test_what_is_built_is_not_built_again(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in binaries.PROGRAMS:
        binaries.path(program).parent.mkdir(parents=True, exist_ok=True)
        binaries.path(program).touch()
    binaries.path("helm").unlink()
    built: list[str] = []
    monkeypatch.setattr("tests.cluster.packages.go", lambda: "/usr/bin/go")
    monkeypatch.setattr(binaries, "_build", lambda _go, program: built.append(program))
    assert binaries.ensure(binaries.EVERYTHING) == built == ["helm"]


def test_every_program_is_a_tool_of_its_pinned_module() -> None:
    for module, package in binaries.PROGRAMS.values():
        assert re.search(rf"^(tool )?\s*{re.escape(package)}$", _text(module), re.MULTILINE), package


def test_all_of_kubernetes_has_one_version() -> None:
    text = _text("kubernetes")
    release = re.search(r"k8s\.io/kubernetes v1\.(\d+\.\d+)", text)
    assert release is not None
    assert set(re.findall(r"=> k8s\.io/\S+ v0\.(\d+\.\d+)", text)) == {release[1]}


def _text(module: str) -> str:
    return (binaries.MODULES / module / "go.mod").read_text()
