"""`kubectl finetune` against a real API server: every verb that asks a cluster. Pods are played by script."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from finetune_cli import __main__ as command
from finetune_cli.importing import llamafactory
from finetune_cli.problem import Exit

from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import Scene
from tests.kube import Kube


class Ran(NamedTuple):
    """The end of a command."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture
def cli(kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `finetune` in the namespace of the test, without a terminal."""
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(
            sys, "argv", ["finetune", *arguments, *(["-n", namespace] if arguments[0] != "new" else [])]
        )
        with pytest.raises(SystemExit) as ended:
            command.main()
        said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def file(scene: Scene, tmp_path: Path) -> str:
    """The example as a file."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(scene.manifest))
    return str(path)


def test_a_job_is_created_watched_paused_and_explained(
    operator: OperatorProcess, scene: Scene, cli: Cli, file: str
) -> None:
    made = cli("run", "-f", file, "--name", "job", "-o", "name")
    assert (made.code, made.out) == (Exit.DONE, "finetunejob/job\n")
    scene.prepared()
    pod = scene.running()
    listed = cli("list")
    assert [line.split()[:2] for line in listed.out.splitlines()] == [["NAME", "STAGE"], ["job", "sft"]]
    assert "job is Running for" in cli("why", "job").out.replace("\n", " ")
    assert json.loads(cli("list", "-o", "json").out)["items"][0]["metadata"]["name"] == "job"
    described = cli("describe", "job").out
    assert "Prepare attempt 1 ended (Completed, exit code 0)" in described
    assert "Training attempt 1 runs" in described
    assert cli("suspend", "job").out == "finetunejob/job saves its state and is suspended\n"
    scene.asked_to_end(pod)
    scene.kubelet.finish(pod, 75)
    scene.reaches("Suspended")
    assert "It is your turn. `finetune resume job` continues it." in cli("why", "job").out.replace("\n", " ")
    assert cli("resume", "job", "--set", "resources.memory=17Gi").code == Exit.DONE
    assert scene.job()["spec"]["resources"]["memory"] == "17Gi"
    pod = scene.running(attempt=2)
    scene.kubelet.finish(pod, 72, "")
    watched = cli("watch", "job")
    assert watched.code == Exit.FAILED
    assert "job failed" in watched.out
    assert cli("retry", "job").out == "finetunejob/job is open again (retry 1)\n"
    scene.running(attempt=3)
    assert cli("stop", "job").code == Exit.USAGE
    assert cli("stop", "job", "--keep").code == Exit.DONE
    assert scene.job()["spec"]["stop"] == "keep"


def test_problems_have_their_exit_codes(
    scene: Scene, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = cli("why", "job")
    assert (missing.code, f'FineTuneJob "job" in namespace {scene.namespace}' in missing.err) == (Exit.NOT_FOUND, True)
    wrong = cli("run", "--model", "hf://a/b", "--dataset", "pvc://a/b=alpaca", "--set", "training.epochs=0")
    assert (wrong.code, "spec.training.epochs" in wrong.err) == (Exit.USAGE, True)
    scene.submit()
    assert cli("retry", "job").code == Exit.REFUSED
    assert cli("watch", "job", "--timeout", "0.1").code == Exit.TIMEOUT
    config = yaml.safe_load(scene.kube.kubeconfig.read_text())
    for user in config["users"]:
        user["user"]["as"] = "somebody"
    stranger = tmp_path / "stranger"
    stranger.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(stranger))
    refused = cli("suspend", "job")
    assert refused.code == Exit.DENIED
    assert f'You may not get finetunejobs "job" in namespace {scene.namespace}' in refused.err


def test_the_doctor_says_what_is_there_and_what_is_missing(kube: Kube, cli: Cli) -> None:
    found = {each["check"]: each for each in json.loads(cli("doctor", "-o", "json").out)}
    assert found["FineTuneJobs"]["level"] == "ok"
    assert found["Rights"]["level"] == "ok"
    assert found["Workspaces"]["level"] == "ok"
    assert found["Operator"]["level"] == "problem"
    assert found["Policies"]["level"] == "ok"
    assert cli("doctor").code == Exit.FAILED


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "ppo", "kto"])
def test_the_api_server_takes_every_starter(kube: Kube, namespace: str, cli: Cli, stage: str) -> None:
    job = yaml.safe_load(cli("new", stage).out)
    path = f"apis/finetune-operator.io/v1alpha1/namespaces/{namespace}/finetunejobs"
    assert kube.call("POST", path, job, dryRun="All", fieldValidation="Strict")["spec"]["stage"] == stage


def test_the_api_server_takes_every_imported_example_of_llama_factory(kube: Kube, namespace: str) -> None:
    examples = json.loads((Path(__file__).parents[1] / "golden" / "llamafactory-examples.json").read_text())["files"]
    path = f"apis/finetune-operator.io/v1alpha1/namespaces/{namespace}/finetunejobs"
    assert len(examples) > 40
    for file, settings in examples.items():
        job = llamafactory.convert(settings).job
        taken = kube.call("POST", path, job, dryRun="All", fieldValidation="Strict")
        assert taken["spec"]["stage"] == job["spec"]["stage"], file
