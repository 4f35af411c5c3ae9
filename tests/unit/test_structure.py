"""The shape of the code: no import circle, and nothing too long to read.

import-linter holds the order of the layers. This reads every import by `ast`, those inside functions and under
TYPE_CHECKING too, because a circle that hides there is one for the reader.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "finetune_api": CHECKOUT / "crds",
    "finetune_operator": CHECKOUT / "operator",
    "finetune_trainer": CHECKOUT / "trainer_image",
    "finetune_cli": CHECKOUT / "cli",
    "finetune_ui": CHECKOUT / "ui",
}
PRODUCT_MODULE_LINES, TEST_MODULE_LINES, FUNCTION_LINES = 350, 500, 70


def modules(package: str) -> dict[str, Path]:
    """Module -> file. A package's `__init__` is called as the package."""
    root = PACKAGES[package]
    files = sorted((root / package).rglob("*.py"))
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules among ``known`` that a module imports anywhere. All imports are absolute."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= {member if member in known else node.module for member in members}
    return {module for module in named if module in known and module != name}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, or an empty list."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package: str) -> None:
    known = modules(package)
    assert len(known) > 10
    assert circle({name: imports(name, file, known) for name, file in known.items()}) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_imports_itself_through_others(package: str) -> None:
    known = modules(package)

    def folder(module: str) -> str:
        """The folder below the package; a module directly in it stands for itself."""
        return ".".join(module.split(".")[:2])

    arrows: dict[str, set[str]] = {}
    for name, file in known.items():
        targets = {folder(other) for other in imports(name, file, known)}
        arrows.setdefault(folder(name), set()).update(targets - {folder(name)})
    assert circle(arrows) == []


def test_a_lazy_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    from b import g\n")
    (tmp_path / "b.py").write_text("import a\n")
    known = {"a": tmp_path / "a.py", "b": tmp_path / "b.py"}
    assert set(circle({name: imports(name, file, known) for name, file in known.items()})) == {"a", "b"}


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Each function and its lines, without decorators."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_modules_and_functions_are_short() -> None:
    product = [file for package in PACKAGES for file in modules(package).values()]
    product += sorted((CHECKOUT / "examples").rglob("*.py"))
    limits = dict.fromkeys(product, PRODUCT_MODULE_LINES)
    limits |= dict.fromkeys((CHECKOUT / "tests").rglob("*.py"), TEST_MODULE_LINES)
    modules_too_long = {
        str(file.relative_to(CHECKOUT)): lines
        for file, limit in limits.items()
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > limit
    }
    functions_too_long = {
        f"{file.relative_to(CHECKOUT)}:{name}": lines
        for file in product
        for name, lines in functions(file)
        if lines > FUNCTION_LINES
    }
    assert modules_too_long == {}
    assert functions_too_long == {}
