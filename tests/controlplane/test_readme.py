"""What README.md shows of kubectl, produced again by the real API server, operator and kubectl."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import readme
from tests.cluster import Cluster
from tests.controlplane.scene import ARTIFACT, Scene, result
from tests.kube import Object, until

REFUSED, NARROW, WIDE = "kubectl apply -f job.yaml", "kubectl get ftj", "kubectl get ftj -o wide"
BROKEN = (
    "1 of 48 rows can't be used: broken.jsonl:7: found a last message of role 'user', expected 'assistant': the answer"
    " to learn; all of them are in jobs/broken-row/reports/invalid-rows.jsonl"
)
"""From the trainer; tests/trainer/test_command_line.py compares it with the README."""


def run(plane: Cluster, command: str, cwd: Path = readme.CHECKOUT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], env=plane.env, cwd=cwd, capture_output=True, text=True, timeout=60)


def rows(plane: Cluster, scene: Scene, command: str) -> list[dict[str, str]]:
    done = run(plane, f"{command} --namespace {scene.namespace}")
    assert done.returncode == 0, done.stderr
    return readme.table(done.stdout.splitlines())


def check_table(shown: list[dict[str, str]], real: list[dict[str, str]]) -> None:
    """Equal, but for ages and what is random."""
    assert [list(row) for row in shown] == [list(row) for row in real]
    for told, row in zip(shown, real, strict=True):
        for column, value in row.items():
            if column == "AGE":
                assert re.fullmatch(r"(\d+[smhd])+", told[column]), told[column]
            else:
                assert readme.shows(told[column], value), f"{column}: {told[column]!r} is {value!r}"


def progress(step: int, loss: str, eta: str) -> Object:
    """What the trainer reports after a step of the example, which has 80."""
    percent = 100 * step // 80
    return {
        "attempt": 1,
        "activity": "Training",
        "step": step,
        "totalSteps": 80,
        "percent": percent,
        "summary": f"{step}/80 ({percent}%)",
        "loss": loss,
        "eta": eta,
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }


@pytest.mark.usefixtures("operator")
def test_the_tables_of_jobs_are_as_shown(control_plane: Cluster, scene: Scene) -> None:
    [shown] = readme.table(readme.sample(NARROW))
    step = int(shown["PROGRESS"].partition("/")[0])
    scene.submit("sft-lora")
    pod = scene.running("sft-lora")
    scene.report(pod, {"progress": progress(step, shown["LOSS"], shown["ETA"])}, "sft-lora")
    check_table([shown], rows(control_plane, scene, NARROW))

    listed = {row["NAME"]: row for row in readme.table(readme.sample(WIDE))}
    scene.report(pod, {"progress": progress(80, listed["sft-lora"]["LOSS"], "0s")}, "sft-lora")
    artifact = {**ARTIFACT, "uri": "pvc://workspace/jobs/sft-lora/artifact"}
    scene.kubelet.finish(pod, 0, json.dumps({**result(0), "artifact": artifact}))
    scene.reaches("Succeeded", name="sft-lora")
    scene.submit("broken-row")
    pod = scene.preparing("broken-row")
    reading = {**progress(0, "", ""), "activity": "Validating", "summary": "Validating 7/48 (14%)"}
    scene.report(pod, {"progress": {name: value for name, value in reading.items() if value != ""}}, "broken-row")
    scene.reaches("Preparing", "Validating", name="broken-row")
    scene.kubelet.finish(pod, 65, json.dumps(result(65, BROKEN, kind="prepare")))
    scene.reaches("Failed", name="broken-row")
    scene.submit("no-secret", secrets={"huggingFace": "hf"})
    pod = scene.kubelet.pod("no-secret", kind="prepare")
    [wanted] = [
        v["valueFrom"]["secretKeyRef"]["name"] for v in pod["spec"]["containers"][0]["env"] if v["name"] == "HF_TOKEN"
    ]
    scene.kubelet.hold(pod, "CreateContainerConfigError", f'secret "{wanted}" not found')
    scene.tells("ConfigMissing", name="no-secret")
    check_table(list(listed.values()), rows(control_plane, scene, WIDE))


def test_the_refusal_of_a_mistake_is_as_shown(
    control_plane: Cluster, namespace: str, manifest: dict[str, Any], tmp_path: Path
) -> None:
    manifest["spec"]["stage"] = "sfft"
    manifest["spec"]["tuning"]["lora"]["rank"] = -1
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
    refused = run(control_plane, f"{REFUSED} --namespace {namespace}", tmp_path)
    assert refused.returncode == 1
    # The API server lists the fields in any order.
    (title, *causes), (shown, *listed) = refused.stderr.splitlines(), readme.sample(REFUSED)
    assert (title.rstrip(), sorted(causes)) == (shown, sorted(listed))


def test_every_sample_is_produced_by_a_test() -> None:
    shown = [block.partition("\n")[0] for block in readme.blocks() if block.startswith("$ ")]
    assert shown == [f"$ {command}" for command in (REFUSED, readme.PREPARE, NARROW, WIDE)]


CREATING = [line for line in readme.commands() if re.search(r"\bkubectl (apply|create|run)\b", line)]


def test_the_readme_creates_something() -> None:
    assert any("examples/copy/pod.yaml" in line for line in CREATING)
    assert any("examples/claims.yaml" in line for line in CREATING)


@pytest.mark.parametrize("command", CREATING)
def test_what_people_are_to_create_is_taken_in_a_restricted_namespace(
    control_plane: Cluster, scene: Scene, command: str
) -> None:
    until("the namespace has its account", lambda: scene.kube.find("ServiceAccount", "default", scene.namespace))
    done = run(control_plane, f"{command} --dry-run=server --namespace {shlex.quote(scene.namespace)}")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "(server dry run)" in done.stdout
