"""What goes into the images and the tests is pinned and has hashes; and what is known about it is told as it is."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests import audit

CHECKOUT = Path(__file__).resolve().parents[2]
OVERRIDES = CHECKOUT / "requirements" / "overrides.txt"
LOCKS = sorted(set((CHECKOUT / "requirements").glob("*.txt")) - {OVERRIDES})
MODULES = sorted((CHECKOUT / "tests").rglob("go.mod"))
PINNED = re.compile(r"([A-Za-z0-9][\w.-]*(?:\[[\w,]+\])?)==([\w.!+-]+)(?: ; .+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
DPKG = """Package: libssl3
Status: install ok installed
Architecture: amd64
Source: openssl (3.0.16-1)
Version: 3.0.16-1~deb12u1
Description: Secure Sockets Layer toolkit
 with a second line: of text

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: libstdc++6
Status: install ok installed
Architecture: amd64
Version: 12.2.0-14
"""


def requirements(lock: Path) -> Iterator[list[str]]:
    """Each requirement: its first line, and its hashes."""
    for entry in re.sub(r"\\\n\s*", "\t", lock.read_text()).splitlines():
        if entry.strip():
            yield [part.strip() for part in entry.split("\t")]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_has_hashes(lock: Path) -> None:
    found = list(requirements(lock))
    assert len(found) > 20
    for first, *hashes in found:
        assert PINNED.fullmatch(first), first
        assert hashes, f"{first} has no hash"
        assert all(map(HASH.fullmatch, hashes)), first


def test_the_images_install_only_what_the_lock_files_name() -> None:
    """With hashes required, and nothing else with pip but the installer itself, whose version is pinned."""
    script = (CHECKOUT / "requirements" / "install.sh").read_text()
    installs = [line for line in script.splitlines() if re.search(r"\bpip (install|sync)\b", line)]
    assert len(installs) == 2
    assert '"uv==$UV_VERSION"' in installs[0]
    assert "--require-hashes" in installs[1]
    dockerfile = (CHECKOUT / "Dockerfile").read_text()
    assert re.search(r"^ARG UV_VERSION=\d+\.\d+\.\d+$", dockerfile, re.MULTILINE)
    assert not re.search(r"\b(curl|wget|git clone)\b", dockerfile + script)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.parent.relative_to(CHECKOUT)))
def test_every_go_module_has_its_sum(module: Path) -> None:
    text, sums = module.read_text(), set(module.with_name("go.sum").read_text().splitlines())
    known = {" ".join(line.split()[:2]) for line in sums}
    assert all(re.fullmatch(r"\S+ v\S+ h1:[A-Za-z0-9+/]{43}=", line) for line in sums)
    replaced = dict(re.findall(r"^\s*(?:replace )?(\S+)(?: v\S+)? => (\S+ v\S+)", text, re.MULTILINE))
    required = re.findall(r"^\s*(?:require )?([\w.-]+\.[\w.-]+/\S+) (v[^\s/]+)(?: // indirect)?$", text, re.MULTILINE)
    assert required
    for name, version in required:
        wanted = replaced.get(name, f"{name} {version}")
        assert f"{wanted}/go.mod" in known, f"{wanted} has no sum"


def test_what_browsers_load_is_pinned_and_has_hashes() -> None:
    """And no address: npm's settings on the machine say where packages come from."""
    lock = json.loads((CHECKOUT / "ui" / "package-lock.json").read_text())
    asked = json.loads((CHECKOUT / "ui" / "package.json").read_text())
    packages = {path.removeprefix("node_modules/"): entry for path, entry in lock["packages"].items() if path}
    versions = {name: entry["version"] for name, entry in packages.items()}
    assert versions == {**asked["dependencies"], **asked["devDependencies"]}
    assert {name for name, entry in packages.items() if entry.get("dev")} == set(asked["devDependencies"])
    for entry in packages.values():
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", entry["integrity"])
        assert "resolved" not in entry
    assert "://" not in json.dumps(lock)


def test_no_package_server_is_named() -> None:
    """Machines have their own mirrors: the clients' settings say where packages come from."""
    names = ["pypi" + r"\.org", "python" + "hosted", "proxy" + r"\.golang", "npm" + r"js\.(org|com)"]
    servers = re.compile("|".join(names))
    files = [*LOCKS, *MODULES, CHECKOUT / "Makefile", CHECKOUT / "Dockerfile", *CHECKOUT.glob("requirements/*")]
    files += [*CHECKOUT.glob("ui/*.json")]
    files += [*CHECKOUT.glob("*/pyproject.toml"), *CHECKOUT.glob("tests/**/*.py")]
    assert [str(file) for file in files if servers.search(file.read_text())] == []


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    specification = importlib.util.spec_from_file_location("sbom", CHECKOUT / "requirements" / "sbom.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_bill_of_materials_names_every_package_as_advisories_do(sbom: ModuleType) -> None:
    components = [*sbom.python_packages(), *sbom.debian_packages(DPKG, "debian-12")]
    bill = sbom.bill("finetune-operator", b"lock", components)
    by_name = {part["name"]: part for part in bill["components"]}
    assert by_name["pydantic"]["purl"] == f"pkg:pypi/pydantic@{by_name['pydantic']['version']}"
    assert by_name["pydantic"]["licenses"] == [{"expression": "MIT"}]
    assert by_name["libssl3"]["purl"] == (
        "pkg:deb/debian/libssl3@3.0.16-1%7Edeb12u1?arch=amd64&distro=debian-12&upstream=openssl%403.0.16-1"
    ).replace("%7E", "~")
    assert by_name["libstdc++6"]["purl"].startswith("pkg:deb/debian/libstdc%2B%2B6@12.2.0-14?")
    assert "gone" not in by_name
    assert "purl" not in by_name["finetune-api"]
    assert {name for name, _ in locked("operator")} <= set(by_name) | {"uvloop"}
    references = [part["bom-ref"] for part in bill["components"]]
    assert len(set(references)) == len(references)
    assert bill["dependencies"] == [{"ref": bill["metadata"]["component"]["bom-ref"], "dependsOn": references}]


def test_a_bill_names_what_browsers_load(sbom: ModuleType) -> None:
    found = sbom.npm_packages(CHECKOUT / "ui" / "package-lock.json")
    assert {part["purl"].rpartition("@")[0] for part in found} == {
        "pkg:npm/htmx.org",
        "pkg:npm/htmx-ext-sse",
        "pkg:npm/uplot",
    }


def test_the_same_image_has_the_same_bill(sbom: ModuleType) -> None:
    one, other = (sbom.bill("finetune-operator", b"lock", sbom.python_packages()) for _ in range(2))
    assert json.dumps(one) == json.dumps(other)
    assert "timestamp" not in one["metadata"]


def locked(name: str) -> list[tuple[str, str]]:
    found = [PINNED.fullmatch(first) for first, *_ in requirements(CHECKOUT / "requirements" / f"{name}.txt")]
    return [(re.sub(r"[-_.]+", "-", match[1].partition("[")[0]).lower(), match[2]) for match in found if match]


CLEAN = {"name": "idna", "version": "3.10", "vulns": []}
FOUND = {"name": "idna", "version": "3.6", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3.7"]}]}
SKIPPED = {"name": "idna", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        ({"pypi": [CLEAN]}, audit.CLEAN, "1 packages asked about, 0 advisories"),
        ({"pypi": [FOUND, CLEAN]}, audit.VULNERABLE, "idna 3.6: PYSEC-1, CVE-1 (fixed in 3.7)"),
        ({"pypi": [SKIPPED], "osv": [FOUND]}, audit.VULNERABLE, "1 advisories"),
        ({"pypi": [CLEAN, SKIPPED]}, audit.CLEAN, "the database does not know idna"),
        ({"pypi": [SKIPPED], "osv": None}, audit.UNKNOWN, "no advisory database can be reached"),
        ({}, audit.UNKNOWN, "no advisory database can be reached"),
    ],
)
def test_an_audit_tells_what_its_answer_is_worth(
    answers: dict[str, list[dict[str, object]] | None], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def asking(_lock: Path, database: str) -> str:
        found = answers.get(database)
        return "" if found is None else json.dumps({"dependencies": found, "fixes": []})

    assert audit.audit([Path("operator.txt")], asking) == code
    assert words in capsys.readouterr().out
