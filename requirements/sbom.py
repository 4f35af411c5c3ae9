"""Lists what an image contains, as CycloneDX JSON: ``python sbom.py NAME LOCK OUT [NPM_LOCK]``, inside an image build.

Python packages as they are installed, with their licenses; Debian packages by dpkg's own list. The same image gives the
same file, byte for byte: it has no time and no random number. Needs the standard library alone.
"""

import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

DPKG = Path("/var/lib/dpkg/status")
RELEASE = Path("/etc/os-release")
OURS = re.compile(r"finetune-\w+")

Component = dict[str, Any]


def python_package(found: Distribution) -> Component:
    """A component for an installed package. ``License-Expression`` is SPDX; the older fields are free text."""
    name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    url = f"pkg:pypi/{name}@{quote(found.version, safe='.')}"
    component: Component = {"type": "library", "bom-ref": url, "name": name, "version": found.version, "purl": url}
    expression = found.metadata.get("License-Expression")
    words = (found.metadata.get("License") or "").strip().split("\n")[0][:100]
    if expression:
        component["licenses"] = [{"expression": expression}]
    elif words:
        component["licenses"] = [{"license": {"name": words}}]
    if OURS.fullmatch(name):  # it is in no index
        component["type"] = "application"
        del component["purl"]
    return component


def python_packages(path: list[str] | None = None) -> list[Component]:
    """All packages on a path, by default this interpreter's."""
    found = distributions(path=path) if path else distributions()
    by_name = {component["name"]: component for component in map(python_package, found)}
    return [by_name[name] for name in sorted(by_name)]


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """The entries of dpkg's list, without the fields that have several lines."""
    for paragraph in text.split("\n\n"):
        lines = [line.partition(":") for line in paragraph.splitlines() if line[:1] not in ("", " ", "\t")]
        if lines:
            yield {name: value.strip() for name, _, value in lines}


def debian_packages(text: str, release: str) -> list[Component]:
    """The packages that are installed, with the source package by which advisories name them."""
    components = []
    for entry in paragraphs(text):
        if not entry.get("Status", "").endswith(" installed"):
            continue
        name, version = entry["Package"], entry["Version"]
        source, _, other = entry.get("Source", name).partition(" ")
        upstream = quote(f"{source}@{other.strip('()')}" if other else source, safe="")
        place = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='.')}"
        url = f"{place}?arch={entry['Architecture']}&distro={release}&upstream={upstream}"
        components.append({"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url})
    return sorted(components, key=lambda component: (component["name"], component["bom-ref"]))


def npm_packages(lock: Path) -> list[Component]:
    """The packages of a package-lock.json, with their licenses, but for those that tests alone use."""
    components = []
    for path, entry in json.loads(lock.read_text(encoding="utf-8"))["packages"].items():
        if not path or entry.get("dev"):  # the root names what it needs
            continue
        name = path.removeprefix("node_modules/")
        url = f"pkg:npm/{quote(name, safe='/')}@{entry['version']}"
        component: Component = {
            "type": "library",
            "bom-ref": url,
            "name": name,
            "version": entry["version"],
            "purl": url,
        }
        if license := entry.get("license"):
            component["licenses"] = [{"expression": license}]
        components.append(component)
    return components


def bill(name: str, lock: bytes, components: list[Component]) -> dict[str, Any]:
    """The whole document."""
    version = next((part["version"] for part in components if part["name"] == name), "0")
    root = {"type": "container", "bom-ref": f"image:{name}", "name": name, "version": version}
    digest = hashlib.sha256(lock).hexdigest()
    content = json.dumps([root, components], sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "component": root,
            "properties": [{"name": "finetune-operator:requirements:sha256", "value": digest}],
        },
        "components": components,
        "dependencies": [{"ref": root["bom-ref"], "dependsOn": [part["bom-ref"] for part in components]}],
    }


def main(name: str, lock: Path, out: Path, npm_lock: Path | None = None) -> None:
    release = dict(line.partition("=")[::2] for line in RELEASE.read_text().splitlines())
    distribution = f"{release['ID']}-{release['VERSION_ID']}".replace('"', "")
    components = [*python_packages(), *debian_packages(DPKG.read_text(encoding="utf-8"), distribution)]
    components += npm_packages(npm_lock) if npm_lock else []
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(bill(name, lock.read_bytes(), components), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
