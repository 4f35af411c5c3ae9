"""FineTuneJobs under the real Argo CD, with health and actions of the chart (docs/gitops.md).

Each application has the name of its namespace. The first test has no operator, so the others follow it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.argocd import NAMESPACE, PATIENCE, SYNC, WAVE, ArgoCD, argocd, config_map
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import FTJ, Scene, claim
from tests.controlplane.test_chaining import PREFERENCE, from_job, succeed
from tests.kube import Kube, Object, until
from tests.unit.argocd.states import ACTION_TESTDATA, TESTDATA
from tests.unit.argocd.test_customization import ACTION_TESTS, HEALTH_TESTS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def argo(kube: Kube, helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArgoCD]:
    with argocd(kube, helm, tmp_path_factory.mktemp("argocd")) as made:
        yield made


@pytest.fixture
def app(argo: ArgoCD, scene: Scene) -> Iterator[str]:
    """The application's name; the test creates it."""
    scene.kube.create(claim(), scene.namespace)
    yield scene.namespace
    scene.kube.delete("Application", scene.namespace, NAMESPACE)


def job(scene: Scene, name: str, **changes: Any) -> Object:
    """A FineTuneJob for Git. Changes are merged into its spec; None takes a field away."""
    made = copy.deepcopy(scene.manifest)
    made["metadata"] = {"name": name}
    for field, value in changes.items():
        merged = {**made["spec"].get(field, {}), **value} if isinstance(value, dict) else value
        if isinstance(merged, dict):
            merged = {key: part for key, part in merged.items() if part is not None}
        made["spec"][field] = merged
    return made


def test_the_keys_of_the_chart_join_those_of_argo_cd(argo: ArgoCD, kube: Kube) -> None:
    """With kubectl's own name as the field manager, they would replace what it had applied before."""
    whole = kube.get("ConfigMap", "argocd-cm", NAMESPACE)["data"]
    ours = {key for key in whole if key.endswith("finetune-operator.io_FineTuneJob")}
    assert len(ours) == 3
    assert "resource.exclusions" in whole
    again = kube.apply(argo.keys, manager="finetune-operator", dry_run=True)
    assert again["data"] == whole
    careless = kube.apply(argo.keys, manager="kubectl", dry_run=True)
    assert set(careless["data"]) == ours


def test_argo_cd_finds_the_health_of_every_fixture(argo: ArgoCD, tmp_path: Path) -> None:
    """Its interpreter is another than that of the unit tests. It asks the script about a deleted object only if that is
    a hook."""
    manifests, expected = {}, {}
    for case in HEALTH_TESTS:
        name, health = Path(case["inputPath"]).stem, case["healthStatus"]
        made = yaml.safe_load((TESTDATA / f"{name}.yaml").read_text())
        manifests[name], expected[name] = made, health
        if "deletionTimestamp" in made["metadata"]:
            hook = {**made["metadata"], "finalizers": ["argocd.argoproj.io/hook-finalizer"]}
            manifests[f"hook-{name}"], expected[f"hook-{name}"] = {**made, "metadata": hook}, health
            expected[name] = {"status": "Progressing", "message": "Pending deletion"}

    def told(name: str) -> str:
        return argo.admin("health", tmp_path / name, manifests[name])

    with ThreadPoolExecutor(4) as pool:  # the command mostly waits
        found = dict(zip(manifests, pool.map(told, manifests), strict=True))
    assert found == {
        name: f"STATUS: {health['status']}\nMESSAGE: {health['message']}\n" for name, health in expected.items()
    }


def test_argo_cd_offers_the_actions_of_every_fixture(argo: ArgoCD, tmp_path: Path) -> None:
    for case in ACTION_TESTS["discoveryTests"]:
        manifest = yaml.safe_load((ACTION_TESTDATA / Path(case["inputPath"]).name).read_text())
        table = argo.admin("list-actions", tmp_path / "job.yaml", manifest).splitlines()[1:]
        listed = {action["name"]: str(action.get("disabled", False)).lower() for action in case["result"]}
        assert dict(line.split() for line in table) == listed


@pytest.mark.parametrize(
    ("jobs", "reports", "seconds"),
    [
        pytest.param(30, 3, 0, id="at once"),
        # As trainers do. Argo CD's cache begins its watches again meanwhile, after ten minutes.
        pytest.param(200, 11, 60, id="ten minutes", marks=[pytest.mark.sweep, pytest.mark.timeout(3600)]),
    ],
)
def test_progress_is_no_reason_to_compare(
    argo: ArgoCD, app: str, scene: Scene, jobs: int, reports: int, seconds: float
) -> None:
    """Jobs report and report: each every so many seconds, one after the other. Argo CD sees each report, and compares
    only when a job's health changes."""
    running, succeeded = (
        yaml.safe_load((TESTDATA / f"{state}.yaml").read_text())["status"] for state in ("running", "succeeded")
    )
    names = [f"job-{number}" for number in range(jobs)]
    argo.application(app)
    argo.commit(app, {f"{name}.yaml": job(scene, name) for name in names})
    argo.becomes(app, "Progressing")

    def write(name: str, status: Object) -> None:
        scene.kube.patch(FTJ, name, {"status": status}, app, part="status")

    seen = argo.events_seen()
    for name in names:
        write(name, running)
    began = time.monotonic()
    for step in range(reports):
        for place, name in enumerate(names):
            due = began + (step + place / jobs) * seconds
            time.sleep(max(0.0, due - time.monotonic()))
            write(name, {"progress": {"step": step, "summary": f"{step}/80"}})
    reported = jobs * (reports + 1)
    until("Argo CD has seen the reports", lambda: argo.events_seen() >= seen + reported, timeout=PATIENCE)
    write(names[7], succeeded)
    ended = "the change of a health is shown"
    until(ended, lambda: argo.resources(app)[names[7]]["status"] == "Healthy", timeout=PATIENCE)
    assert argo.resources(app)[names[3]]["message"] == f"Running: Training. {reports - 1}/80"
    # Each job was created, which is news. What follows is not.
    assert sorted(argo.refreshes(app)) == sorted([*names, names[7]])


def test_a_commit_a_mistake_and_its_revert(argo: ArgoCD, app: str, scene: Scene, operator: OperatorProcess) -> None:
    argo.application(app)
    argo.commit(app, {"good.yaml": job(scene, "good")})
    argo.becomes(app, "Progressing")
    scene.running("good")
    running = {"status": "Progressing", "message": "Running: Training."}

    def shown() -> bool:
        """A comparison is with what Argo CD's own watch has seen, which may be older than the phase."""
        argo.compared(app)
        return argo.resources(app)["good"] == running

    until("Argo CD shows the running job", shown, timeout=PATIENCE)
    argo.commit(app, {"bad.yaml": job(scene, "bad", model={"trustRemoteCode": True})})
    argo.becomes(app, "Degraded")
    told = argo.resources(app)["bad"]
    status = scene.status("bad")
    assert told == {"status": "Degraded", "message": f"InvalidSpec: {status['message']}"}
    assert "allowRemoteCode" in status["message"]
    assert argo.actions(app, "bad") == {"retry"}
    argo.revert(app)
    argo.becomes(app, "Progressing")
    assert scene.kube.find(FTJ, "bad", app) is None
    succeed(scene, "good")
    argo.becomes(app, "Healthy")
    assert argo.actions(app, "good") == set()


def test_an_edit_of_what_is_fixed_fails_the_sync_and_not_the_job(
    argo: ArgoCD, app: str, scene: Scene, operator: OperatorProcess
) -> None:
    """Neither does Argo CD try again and again, nor does the job notice. The revert is in sync at once."""
    argo.application(app)
    argo.commit(app, {"job.yaml": job(scene, "job")})
    argo.becomes(app, "Progressing")
    scene.running()
    argo.commit(app, {"job.yaml": job(scene, "job", training={"learningRate": 0.1})})
    told = argo.fails(app)
    assert "spec.training cannot be changed: delete the job, or create a job with another name" in told
    assert scene.status()["phase"] == "Running"
    argo.revert(app)
    argo.becomes(app, "Progressing", commit=argo.repository.head)
    assert scene.job()["metadata"]["generation"] == 1


def test_replacing_takes_back_what_the_file_does_not_have(
    argo: ArgoCD, app: str, scene: Scene, operator: OperatorProcess
) -> None:
    """Replace=true resumes a job that is suspended, and is refused once a retry was asked for."""
    replaced = {"argocd.argoproj.io/sync-options": "Replace=true"}

    def file(seconds: int) -> Object:
        made = job(scene, "job", ttlSecondsAfterFinished=seconds)
        return {**made, "metadata": {**made["metadata"], "annotations": replaced}}

    argo.application(app)
    argo.commit(app, {"job.yaml": file(1)})
    argo.becomes(app, "Progressing")
    argo.act(app, "job", "suspend")
    scene.reaches("Suspended")
    uid = scene.job()["metadata"]["uid"]
    argo.commit(app, {"job.yaml": file(2)})
    until("the job is resumed", lambda: "suspend" not in scene.job()["spec"], timeout=PATIENCE)
    assert scene.job()["metadata"]["uid"] == uid
    scene.kube.patch(FTJ, "job", {"spec": {"retry": 1}}, app)
    argo.commit(app, {"job.yaml": file(3)})
    assert "spec.retry can only be raised" in argo.fails(app)


@pytest.mark.parametrize("file", ["leaves suspend out", "has suspend", "has suspend, which Argo CD ignores"])
def test_suspend_and_self_heal(argo: ArgoCD, app: str, scene: Scene, operator: OperatorProcess, file: str) -> None:
    ignored: Object = {}
    if "ignores" in file:
        differences = {"group": "finetune-operator.io", "kind": FTJ, "jsonPointers": ["/spec/suspend"]}
        policy = {**SYNC, "syncOptions": ["RespectIgnoreDifferences=true"]}
        ignored = {"ignoreDifferences": [differences], "syncPolicy": policy}
    fields = {} if "leaves" in file else {"suspend": False}
    argo.application(app, **ignored)
    argo.commit(app, {"job.yaml": job(scene, "job", **fields)})
    argo.becomes(app, "Progressing")
    pod = scene.running()
    until("actions are offered", lambda: argo.actions(app, "job") == {"suspend", "stop-and-keep"})
    argo.act(app, "job", "suspend")
    if file == "has suspend":
        until("the change is taken back", lambda: scene.job()["metadata"]["generation"] == 3, timeout=PATIENCE)
        assert scene.job()["spec"]["suspend"] is False
        return
    scene.asked_to_end(pod)
    scene.kubelet.remove(pod)
    scene.reaches("Suspended")
    argo.becomes(app, "Suspended")
    # Another commit is synced, and the job stays suspended.
    argo.commit(app, {"job.yaml": job(scene, "job", ttlSecondsAfterFinished=60, **fields)})
    argo.becomes(app, "Suspended", commit=argo.repository.head)
    until("the edit is applied", lambda: scene.job()["spec"].get("ttlSecondsAfterFinished") == 60, timeout=PATIENCE)
    assert scene.job()["spec"]["suspend"] is True
    assert argo.actions(app, "job") == {"resume", "stop-and-keep"}
    argo.act(app, "job", "resume")
    argo.becomes(app, "Progressing")
    scene.reaches("Starting", attempt=2)


def test_a_wave_waits_for_a_chain(argo: ArgoCD, app: str, scene: Scene, operator: OperatorProcess) -> None:
    """The chain is in a single wave, in which its jobs wait for each other."""
    dpo = job(scene, "dpo", stage="dpo", datasets=PREFERENCE, **from_job("sft"))
    argo.application(app)
    argo.commit(app, {"sft.yaml": job(scene, "sft"), "dpo.yaml": dpo, "serve.yaml": config_map("serve", **WAVE)})
    until("both are created", lambda: len(scene.kube.list(FTJ, app)) == 2, timeout=PATIENCE)
    succeed(scene, "sft")
    scene.running("dpo")

    def waits_for_dpo() -> bool:
        message = str(argo.status(app).get("operationState", {}).get("message"))
        return message.endswith("FineTuneJob/dpo")

    until("the wave waits for the second job", waits_for_dpo, timeout=PATIENCE)
    assert scene.kube.find("ConfigMap", "serve", app) is None
    succeed(scene, "dpo")
    until("the next wave begins", lambda: scene.kube.find("ConfigMap", "serve", app), timeout=PATIENCE)
    argo.becomes(app, "Healthy")


def test_a_failed_job_ends_its_wave(argo: ArgoCD, app: str, scene: Scene, operator: OperatorProcess) -> None:
    bad = job(scene, "bad", model={"trustRemoteCode": True})
    argo.application(app)
    argo.commit(app, {"bad.yaml": bad, "serve.yaml": config_map("serve", **WAVE)})
    argo.becomes(app, "Degraded", "OutOfSync")
    assert "bad" not in argo.fails(app), "nothing is wrong with applying it"
    assert scene.kube.find("ConfigMap", "serve", app) is None


def test_pruning_keeps_the_model(argo: ArgoCD, app: str, scene: Scene, operator: OperatorProcess) -> None:
    """The claim is nobody's, so neither Argo CD nor the garbage collector deletes it. Children are not Argo CD's."""
    workspace = {"claimName": None, "claim": {"size": "1Gi"}}
    argo.application(app)
    argo.commit(app, {"job.yaml": job(scene, "job", workspace=workspace), "note.yaml": config_map("note")})
    status = argo.becomes(app, "Progressing")
    scene.running()
    assert {found["kind"] for found in status["resources"]} == {FTJ, "ConfigMap"}
    argo.commit(app, {"job.yaml": None})

    def gone() -> bool:
        """Argo CD deletes in the foreground: the job goes after its pods."""
        scene.kubelet.remove_all("job")
        return scene.kube.find(FTJ, "job", app) is None

    until("the job is pruned", gone, timeout=PATIENCE)
    assert scene.kube.list("Job", app) == []
    argo.becomes(app, "Healthy")
    kept = scene.kube.get("PersistentVolumeClaim", "job-workspace", app)["metadata"]
    assert "deletionTimestamp" not in kept
    assert "ownerReferences" not in kept


SERVER_SIDE: Object = {
    "metadata": {"annotations": {"argocd.argoproj.io/compare-options": "ServerSideDiff=true"}},
    "syncPolicy": {**SYNC, "syncOptions": ["ServerSideApply=true"]},
}


@pytest.mark.parametrize("spec", [{}, SERVER_SIDE], ids=["client side", "server side"])
def test_every_example_is_in_sync(
    argo: ArgoCD, app: str, scene: Scene, operator: OperatorProcess, spec: Object
) -> None:
    """After the operator has acted on it: neither defaults nor what it writes are a difference."""
    documents = [made for file in sorted(EXAMPLES.rglob("*.yaml")) for made in yaml.safe_load_all(file.read_text())]
    jobs = {made["metadata"]["name"]: made for made in documents if made["kind"] == FTJ}
    argo.application(app, **spec)
    argo.commit(app, {f"{name}.yaml": made for name, made in jobs.items()})
    until("all are created", lambda: len(scene.kube.list(FTJ, app)) == len(jobs), timeout=PATIENCE)
    seen = "observedGeneration"
    until("all are seen", lambda: all(seen in made["status"] for made in scene.kube.list(FTJ, app)), timeout=PATIENCE)
    argo.becomes(app, "Progressing")
    status = argo.compared(app)
    assert {found["name"]: found["status"] for found in status["resources"]} == dict.fromkeys(jobs, "Synced")
    assert {made["metadata"]["generation"] for made in scene.kube.list(FTJ, app)} == {1}
