"""Programs are built again if and only if their inputs have changed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.cluster import binaries, go, packages


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(binaries.MODULES, tmp_path / "modules")
    monkeypatch.setattr(binaries, "MODULES", tmp_path / "modules")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "modules"


@pytest.mark.parametrize("name", ["go.mod", "go.sum"])
def test_another_dependency_gives_another_folder(modules: Path, name: str) -> None:
    before = {program: binaries.path(program) for program in binaries.PROGRAMS}
    with (modules / "etcd" / name).open("a") as file:
        file.write("\n")
    changed = {program for program, path in before.items() if binaries.path(program) != path}
    assert changed == {"etcd"}


def test_a_built_program_is_not_built_again(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in binaries.PROGRAMS:
        binaries.path(program).parent.mkdir(parents=True, exist_ok=True)
        binaries.path(program).touch()
    binaries.path("helm").unlink()
    built: list[str] = []
    monkeypatch.setattr("tests.cluster.go.build", lambda _folder, _package, target, *_: built.append(target.name))
    assert binaries.ensure(binaries.EVERYTHING) == built == ["helm"]


def test_every_program_is_a_tool_of_its_pinned_module() -> None:
    for module, package in binaries.PROGRAMS.values():
        assert re.search(rf"^(tool )?\s*{re.escape(package)}$", _text(module), re.MULTILINE), package


def test_the_toolchain_is_new_enough_for_every_module() -> None:
    for file in Path(binaries.__file__).parents[1].rglob("go.mod"):
        needed = re.search(r"^go (\d+)\.(\d+)", file.read_text(), re.MULTILINE)
        assert needed is not None, file
        assert tuple(map(int, needed.groups())) <= packages.GO_NEEDED, file


def test_a_build_leaves_no_caches(modules: Path) -> None:
    """Those of all programs have 14 GB."""
    with go.building("test") as env:
        for name in ("GOCACHE", "GOMODCACHE"):
            made = Path(env[name]) / "part"
            made.mkdir(parents=True)
            assert made.is_relative_to(modules.parent / "cache")
    assert {path.name for path in (modules.parent / "cache").rglob("*")} == {"locks", "test", "go-caches"}


def test_all_of_kubernetes_has_one_version() -> None:
    text = _text("kubernetes")
    release = re.search(r"k8s\.io/kubernetes v1\.(\d+\.\d+)", text)
    assert release is not None
    assert set(re.findall(r"=> k8s\.io/\S+ v0\.(\d+\.\d+)", text)) == {release[1]}


@pytest.mark.parametrize(
    ("module", "dependency", "variables"),
    [
        ("kubernetes", "k8s.io/kubernetes", {"version.gitVersion": "v{0}.{1}.{2}", "version.gitMinor": "{1}"}),
        ("helm", "helm.sh/helm/v3", {"version.version": "v{0}.{1}.{2}"}),
        ("helm", "k8s.io/client-go", {"chartutil.k8sVersionMinor": "{1}", "rules.k8sVersionMinor": "{1}"}),
    ],
)
def test_programs_know_their_version(module: str, dependency: str, variables: dict[str, str]) -> None:
    pinned = re.search(rf"{re.escape(dependency)} v(\d+)\.(\d+)\.(\d+)", _text(module))
    assert pinned is not None
    flags = " ".join(binaries._flags(module))
    for name, value in variables.items():
        assert f"{name}={value.format(*pinned.groups())}" in flags


def _text(module: str) -> str:
    return (binaries.MODULES / module / "go.mod").read_text()
