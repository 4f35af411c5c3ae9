"""The real Argo CD syncs a local Git repository into the cluster: its pods train what is committed.

Argo CD runs as processes beside the cluster, with health and actions of the chart. The controlplane tier tries each
rule of docs/gitops.md with pods that are played. Here the pods, the volumes and the garbage collector are real.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.argocd import NAMESPACE as ARGOCD
from tests.argocd import WAVE, ArgoCD, argocd, config_map
from tests.cluster import Cluster
from tests.e2e.conftest import BROKEN_ROW, LONG, POD_MINUTES, TRAINING, Scene
from tests.kube import Object, until

CHAIN, HEAL = "argocd-chain", "argocd-heal"
SFT, DPO = "argocd-sft", "argocd-dpo"
SERVE = "argocd-serve"
LONGEST = 3 * POD_MINUTES
"""Patience for a job from its commit to its end: the pods of two tasks, on a busy machine."""
pytestmark = [pytest.mark.sweep, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def argo(scene: Scene, whole_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArgoCD]:
    helm = whole_cluster.bin / "helm"
    with argocd(scene.kube, helm, tmp_path_factory.mktemp("argocd")) as made:
        yield made


@pytest.fixture(scope="module")
def chain(argo: ArgoCD, scene: Scene) -> Iterator[str]:
    """An application in whose first wave one job starts from the other; a ConfigMap is the second. Its name."""
    argo.application(CHAIN, scene.namespace)
    files: dict[str, Object | None] = {
        "sft.yaml": file(scene, SFT),
        "dpo.yaml": dpo(scene),
        "serve.yaml": config_map(SERVE, **WAVE),
    }
    argo.commit(CHAIN, files)
    yield CHAIN
    scene.kube.delete("Application", CHAIN, ARGOCD)
    for name in (SFT, DPO):
        scene.kube.delete("FineTuneJob", name, scene.namespace)
    scene.kube.delete("ConfigMap", SERVE, scene.namespace)
    scene.kube.delete("PersistentVolumeClaim", f"{DPO}-workspace", scene.namespace)


def file(scene: Scene, name: str, **changes: object) -> Object:
    """A job as a file in Git, which leaves its namespace to the application."""
    made = scene.job(name, **changes)
    del made["metadata"]["namespace"]
    return made


def dpo(scene: Scene) -> Object:
    """The second job of the chain, on a claim that the operator makes."""
    preferences = [{"source": "pvc://models/data/preferences.jsonl", "format": "preference"}]
    training = {**TRAINING, "maxSteps": 5, "microBatchSize": 4, "cutoffLength": 256}
    workspace = {"claim": {"size": "1Gi"}}
    changes = {"model": {"fromJob": SFT}, "datasets": preferences, "training": training, "workspace": workspace}
    return file(scene, DPO, stage="dpo", **changes)


def ended_well(scene: Scene, name: str) -> Object:
    """The status of a job, once it has Succeeded."""
    status = scene.reaches(name, "Succeeded", "Failed", timeout=LONGEST)
    assert status["phase"] == "Succeeded", status["message"]
    return status


def test_a_commit_trains_a_chain_and_the_next_wave_waits_for_it(argo: ArgoCD, scene: Scene, chain: str) -> None:
    argo.becomes(chain, "Progressing", "OutOfSync")
    ended_well(scene, SFT)

    def waits_for_dpo() -> bool:
        message = str(argo.status(chain).get("operationState", {}).get("message"))
        return message.endswith(f"FineTuneJob/{DPO}")

    until("the wave waits for the second job", waits_for_dpo, POD_MINUTES)
    assert scene.kube.find("ConfigMap", SERVE, scene.namespace) is None
    ended_well(scene, DPO)
    until("the next wave begins", lambda: scene.kube.find("ConfigMap", SERVE, scene.namespace), POD_MINUTES)
    argo.becomes(chain, "Healthy", timeout=POD_MINUTES)
    healthy = {name: health["status"] for name, health in argo.resources(chain).items()}
    assert healthy == {SFT: "Healthy", DPO: "Healthy"}


def test_a_bad_commit_shows_our_message_and_its_revert_is_healthy(argo: ArgoCD, scene: Scene, chain: str) -> None:
    """A pod finds the mistake: it is in the data."""
    argo.becomes(chain, "Healthy", timeout=2 * LONGEST)
    name = "argocd-bad"
    argo.commit(
        chain,
        {"bad.yaml": file(scene, name, datasets=[{"source": "pvc://models/data/broken.jsonl", "format": "openai"}])},
    )
    argo.becomes(chain, "Degraded", commit=argo.repository.head, timeout=LONGEST)
    shown, status = argo.resources(chain)[name], scene.status(name)
    assert shown == {"status": "Degraded", "message": f"InvalidData: {status['message']}"}
    assert f"broken.jsonl:{BROKEN_ROW}" in status["message"]
    argo.revert(chain)
    argo.becomes(chain, "Healthy", commit=argo.repository.head, timeout=POD_MINUTES)
    assert scene.kube.find("FineTuneJob", name, scene.namespace) is None
    until("its pods are gone", lambda: not scene.pods(name, "prepare"), POD_MINUTES)


def test_pruning_keeps_the_model_which_the_same_file_finds_again(argo: ArgoCD, scene: Scene, chain: str) -> None:
    """The claim is the operator's own making. After a real garbage collector has taken the job's children away, it is
    there, and so is the model on it."""
    argo.becomes(chain, "Healthy", timeout=2 * LONGEST)
    before = scene.kube.get("FineTuneJob", DPO, scene.namespace)
    argo.commit(chain, {"dpo.yaml": None})
    argo.becomes(chain, "Healthy", commit=argo.repository.head, timeout=POD_MINUTES)
    assert scene.kube.find("FineTuneJob", DPO, scene.namespace) is None
    label = f"finetune-operator.io/job={DPO}"

    def alone() -> bool:
        return not scene.kube.list("Job", scene.namespace, label) and not scene.kube.list("Pod", scene.namespace, label)

    until("its children are gone", alone, POD_MINUTES)
    argo.commit(chain, {"dpo.yaml": dpo(scene)})
    argo.becomes(chain, "Healthy", commit=argo.repository.head, timeout=LONGEST)
    after = scene.kube.get("FineTuneJob", DPO, scene.namespace)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["status"]["artifact"] == before["status"]["artifact"]
    assert not scene.pods(DPO), "nothing is trained again"


@pytest.fixture
def heal(argo: ArgoCD, scene: Scene) -> Iterator[str]:
    """An application for one long job. Its name is that of the job as well."""
    argo.application(HEAL, scene.namespace)
    yield HEAL
    scene.kube.delete("Application", HEAL, ARGOCD)
    scene.kube.delete("FineTuneJob", HEAL, scene.namespace)


def trains_beyond(scene: Scene, step: int) -> Object | None:
    """The status of the job, once its newest attempt has done more steps, by the newest spec."""
    job = scene.kube.get("FineTuneJob", HEAL, scene.namespace)
    status, progress = job["status"], job["status"].get("progress", {})
    now = status["phase"] == "Running" and status["observedGeneration"] == job["metadata"]["generation"]
    newest = progress.get("kind") == "train" and progress["attempt"] == status["attempt"]
    return status if now and newest and progress["step"] > step else None


def test_the_suspend_action_against_self_heal_both_ways(argo: ArgoCD, scene: Scene, heal: str) -> None:
    """If the file leaves suspend out, the job stays suspended. If the file has it, the job is resumed at once."""
    argo.commit(heal, {"job.yaml": file(scene, heal, **LONG)})
    argo.becomes(heal, "Progressing")
    scene.trains(heal, steps=5)
    offered = {"suspend", "stop-and-keep"}
    until("actions are offered", lambda: argo.actions(heal, heal) == offered, POD_MINUTES)
    argo.act(heal, heal, "suspend")
    saved = scene.reaches(heal, "Suspended")["checkpoint"]["step"]
    argo.becomes(heal, "Suspended", timeout=POD_MINUTES)
    assert not scene.pods(heal)
    argo.commit(heal, {"job.yaml": file(scene, heal, **LONG, ttlSecondsAfterFinished=3600)})
    argo.becomes(heal, "Suspended", commit=argo.repository.head, timeout=POD_MINUTES)
    spec = scene.kube.get("FineTuneJob", heal, scene.namespace)["spec"]
    assert (spec["suspend"], spec["ttlSecondsAfterFinished"]) == (True, 3600), "the commit is synced beside it"
    argo.act(heal, heal, "resume")
    status = until("it trains on", lambda: trains_beyond(scene, saved), LONGEST, every=0.5)
    assert (status["attempt"], status["progress"]["startStep"]) == (2, saved)
    argo.becomes(heal, "Progressing", timeout=POD_MINUTES)

    argo.commit(heal, {"job.yaml": file(scene, heal, **LONG, ttlSecondsAfterFinished=3600, suspend=False)})
    argo.becomes(heal, "Progressing", commit=argo.repository.head, timeout=POD_MINUTES)
    before = scene.kube.get("FineTuneJob", heal, scene.namespace)["metadata"]["generation"]
    argo.act(heal, heal, "suspend")

    def taken_back() -> bool:
        job = scene.kube.get("FineTuneJob", heal, scene.namespace)
        return job["metadata"]["generation"] == before + 2 and job["spec"]["suspend"] is False

    until("the change is taken back", taken_back, POD_MINUTES)
    step = scene.status(heal)["progress"]["step"]
    status = until("it trains on again", lambda: trains_beyond(scene, step), LONGEST, every=0.5)
    assert not any(attempt.get("failures") for attempt in status["attempts"])
    argo.act(heal, heal, "stop-and-keep")
    assert ended_well(scene, heal)["reason"] == "StoppedByUser"
    argo.becomes(heal, "Healthy", timeout=POD_MINUTES)
