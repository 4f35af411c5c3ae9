"""The three tools: each takes rendered manifests and returns findings."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.chart import CHART as CHART_FOLDER
from tests.chart import CHECKOUT, RELEASE, helm
from tests.chart_audit import schemas
from tests.chart_audit.exceptions import Finding
from tests.cluster import binaries

CHECKOV = "checkov==3.3.30"
"""Not in our lock files: it brings more packages than the whole project, and nothing else needs them."""
DIGEST = "sha256:" + "0" * 64
EVERYTHING = {
    "image.digest": DIGEST,
    "trainer.image.digest": DIGEST,
    "ui.enabled": "true",
    "ui.image.digest": DIGEST,
    "ui.cookieKeySecret": "cookie-key",
    "networkPolicy.enabled": "true",
    "networkPolicy.training.namespaces": "{team-a}",
}
"""Values with which the chart renders all that it can, as one installs it in production."""


def render(folder: Path) -> Path:
    """The manifests, with those of `helm test`, in a file."""
    sets = [part for key, value in EVERYTHING.items() for part in ("--set", f"{key}={value}")]
    arguments = ["template", RELEASE, str(CHART_FOLDER), "--namespace", "finetune-system", *sets]
    file = folder / "manifests.yaml"
    file.write_text(helm(binaries.path("helm"), *arguments), encoding="utf-8")
    return file


def kubeconform(manifests: Path) -> set[Finding]:
    """Strictly: every field is one that Kubernetes, or our CRD, has."""
    folder = manifests.parent / "schemas"
    folder.mkdir(exist_ok=True)
    kinds = set(re.findall(r"^kind: (\w+)$", manifests.read_text(encoding="utf-8"), re.MULTILINE))
    schemas.write(folder, CHECKOUT / "crds" / "finetunejobs.yaml", kinds)
    location = f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [str(binaries.path("kubeconform")), "-strict", "-output", "json", "-schema-location", location]
    answer = json.loads(_run([*command, str(manifests)]))
    return {
        Finding("kubeconform", f"{found['status']}: {found['msg']}", _object(found["kind"], found["name"]))
        for found in answer["resources"]
    }


def kube_score(manifests: Path) -> set[Finding]:
    """Its own default checks; warnings count."""
    answer = json.loads(_run([str(binaries.path("kube-score")), "score", "--output-format", "json", str(manifests)]))
    return {
        Finding("kube-score", check["check"]["id"], _object(target["type_meta"]["kind"], target["object_meta"]["name"]))
        for target in answer
        for check in target["checks"]
        if not check["skipped"] and check["grade"] < _ALL_OK
    }


def checkov(manifests: Path) -> set[Finding]:
    """Its checks of Kubernetes manifests, in an environment of its own."""
    uv = CHECKOUT / ".tools" / "bin" / "uv"
    options = ["--framework", "kubernetes", "--output", "json", "--quiet", "--compact", "--skip-download"]
    answer = json.loads(
        _run([str(uv), "tool", "run", "--quiet", "--from", CHECKOV, "checkov", "-f", str(manifests), *options])
    )
    found = set()
    for failed in answer["results"]["failed_checks"]:
        kind, *_, name = failed["resource"].split(".")
        found.add(Finding("checkov", failed["check_id"], _object(kind, name)))
    return found


TOOLS: dict[str, Callable[[Path], set[Finding]]] = {
    "kubeconform": kubeconform,
    "kube-score": kube_score,
    "checkov": checkov,
}
_ALL_OK = 10
"""kube-score's grade of a check that an object passes."""


def _object(kind: str, name: str) -> str:
    return f"{kind}/{name.removeprefix(RELEASE)}"


def _run(command: list[str]) -> str:
    """Its output. The exit code of these tools says that there are findings."""
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.strip():
        raise RuntimeError(f"{command[0]} failed with {done.returncode}:\n{done.stderr}")
    return done.stdout
