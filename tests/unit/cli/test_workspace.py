"""What reads a workspace: the pod, its removal, and fetch, report, ask and plot --full over a WebSocket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import AttemptFacts
from finetune_api.spec import FineTuneJobSpec
from finetune_api.stored_job import store
from finetune_cli import __main__ as command
from finetune_cli import starter
from finetune_cli.cluster import refusals, remote
from finetune_cli.cluster.client import Client
from finetune_cli.problem import Exit, Problem
from finetune_cli.workspace import ask, fetch, pod, report, session, waiting
from finetune_cli.workspace.pod import Need, Place, manifest
from finetune_operator import names
from finetune_operator.manifests.pod import pod_template
from finetune_operator.settings import Settings
from finetune_trainer.workspace.files import digest_folder

from tests.trainer.support import tiny
from tests.unit.cli.workspace_server import Cluster, served

BIG = bytes(range(256)) * 40
FILES = {"README.md": b"how to load it\n", "a/empty": b"", "a/weights": BIG, "b.json": b'{"x": "\xc3\xa4"}'}
OPERATORS = {names.LABEL_MANAGED, names.LABEL_JOB, names.LABEL_KIND, names.LABEL_UID}


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(waiting, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", 0.001)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A workspace with an artifact, a report and a log."""
    home = tmp_path / "workspace" / "jobs" / "a"
    for name, data in FILES.items():
        file = home / "artifact" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    reports = home / "reports"
    reports.mkdir()
    (reports / "prepare.md").write_text("# Prepared data of a\n[[wörter]]\n")
    (reports / "prepare.json").write_text('{"job": "a"}')
    lines = [{"current_steps": step, "loss": 1 / step, "lr": 0.1, "eval_loss": None} for step in (1, 2, 3)]
    (reports / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"curr')
    return Cluster(tmp_path / "workspace")


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with served(cluster) as found:
        yield found


@pytest.fixture
def job(cluster: Cluster) -> Any:
    digest, size = digest_folder(cluster.workspace / "jobs" / "a" / "artifact")
    resolved = {"model": {"source": "pvc://models/base"}, "datasets": [{"source": "pvc://data/rows.jsonl"}]}
    return {
        "metadata": {"name": "a", "namespace": "team", "uid": "job-uid"},
        "spec": {
            "stage": "sft",
            "model": {"fromJob": "b"},
            "workspace": {"claimName": "work"},
            "resources": {"cpu": "4", "memory": "16Gi", "imagePullSecrets": ["own"], "podLabels": {"team": "nlp"}},
        },
        "status": {
            "phase": "Succeeded",
            "artifact": {"digest": digest, "sizeBytes": size, "kind": "adapter"},
            "resolved": {"image": "registry/trainer:1", "job": store(json.dumps(resolved))},
        },
    }


def manifest_of_training() -> Any:
    """The pod that the operator makes, which the API server holds against Pod Security in other tests."""
    facts = AttemptFacts(namespace="team", name="a", uid="12345-uid", attempt=1, job_name="a-12345-1")
    spec = FineTuneJobSpec.model_validate({**starter.filled("sft", "a")["spec"]})
    return pod_template(facts, spec, tiny.job(), "{}", "image", Settings(trainer_image="image"))["spec"]


def test_the_pod_is_restricted_belongs_to_the_job_and_is_not_the_operators(job: Any) -> None:
    made = manifest(job, Need(60, models=True), Place("work", "node-1", ("theirs",)))
    meta, spec = made["metadata"], made["spec"]
    (container,) = spec["containers"]
    own = manifest_of_training()
    assert spec["securityContext"] == own["securityContext"]
    assert container["securityContext"] == own["containers"][0]["securityContext"]
    assert not OPERATORS & meta["labels"].keys()
    assert meta["labels"]["team"] == "nlp"
    assert meta["ownerReferences"] == [
        {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob", "name": "a", "uid": "job-uid"}
    ]
    assert (spec["automountServiceAccountToken"], spec["activeDeadlineSeconds"]) == (False, 60)
    assert container["image"] == "registry/trainer:1"
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounts == {"/tmp": False, "/workspace": True, "/volumes/work": True, "/volumes/models": True}
    assert [secret["name"] for secret in spec["imagePullSecrets"]] == ["own", "theirs"]
    assert "node-1" in json.dumps(spec["affinity"])
    assert pod.GATE not in meta["labels"]


@pytest.mark.parametrize(
    ("change", "need", "queue"),
    [
        ({"prepare": {"queue": "cpus"}, "queue": "gpus"}, Need(1), "cpus"),
        ({"prepare": {"queue": "cpus"}, "queue": "gpus"}, Need(1, gpu=True), "gpus"),
        ({}, Need(1, queue="mine"), "mine"),
    ],
)
def test_the_pod_stands_in_the_queue_of_pods_like_it(job: Any, change: Any, need: Need, queue: str) -> None:
    job["spec"] |= change
    made = manifest(job, need, Place("work"))
    assert made["metadata"]["labels"][pod.GATE] == queue
    assert ("nvidia.com/gpu" in made["spec"]["containers"][0]["resources"]["limits"]) == need.gpu


def test_a_claim_of_one_node_is_read_where_it_is_mounted(cluster: Cluster, client: Client, job: Any) -> None:
    cluster.claim = {"spec": {"accessModes": ["ReadWriteOnce"]}}
    volume = {"name": "w", "persistentVolumeClaim": {"claimName": "work"}}
    other = {"metadata": {"name": "other"}, "spec": {"nodeName": "node-7", "volumes": [volume]}}
    cluster.pods["other"] = other
    report.data_report(client, job, "text", None, 5)
    assert "node-7" in json.dumps(cluster.created[0]["spec"]["affinity"])


def test_fetch_copies_the_artifact_through_broken_connections(
    cluster: Cluster, client: Client, job: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.cuts = [1 << 20, 5, 3000, 4000]  # the first lists
    cluster.refusals = [0, 3]
    target = tmp_path / "out"
    fetch.fetch(client, job, str(target), None, 5)
    assert {str(file.relative_to(target)): file.read_bytes() for file in target.rglob("*") if file.is_file()} == FILES
    offsets = [int(command[-1]) for command in cluster.commands[1:]]
    assert offsets == [0, 5, 3005, 7005]
    assert "continues at" in capsys.readouterr().err
    assert cluster.deleted == [cluster.created[0]["metadata"]["name"]]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_fetch_continues_what_an_earlier_call_began(cluster: Cluster, client: Client, job: Any, tmp_path: Path) -> None:
    cluster.cuts = [1 << 20, 7000, *([0] * fetch.TRIES)]
    target = tmp_path / "out"
    with pytest.raises(Problem, match="Run the command again") as caught:
        fetch.fetch(client, job, str(target), None, 5)
    assert caught.value.code is Exit.UNREACHABLE
    assert not target.exists()
    cluster.cuts.clear()
    fetch.fetch(client, job, str(target), None, 5)
    assert cluster.commands[-1][-1] == "7000"
    assert digest_folder(target)[0] == job["status"]["artifact"]["digest"]
    assert not cluster.pods


def test_fetch_starts_again_for_another_artifact_or_strange_files(
    cluster: Cluster, client: Client, job: Any, tmp_path: Path
) -> None:
    for note, name in (("sha256:other", "README.md"), (job["status"]["artifact"]["digest"], "strange")):
        staging = fetch.Staging(tmp_path / name.lower(), note)
        staging.files.mkdir(parents=True)
        (staging.folder / "digest").write_text(note)
        (staging.files / name).write_bytes(b"how")
        fetch.fetch(client, job, str(tmp_path / name.lower()), None, 5)
        assert cluster.commands[-1][-1] == "0"
        assert digest_folder(tmp_path / name.lower())[0] == job["status"]["artifact"]["digest"]


def test_an_artifact_that_was_changed_is_not_kept(cluster: Cluster, client: Client, job: Any, tmp_path: Path) -> None:
    (cluster.workspace / "jobs/a/artifact/README.md").write_bytes(b"what to believe")
    with pytest.raises(Problem, match="was changed or is damaged"):
        fetch.fetch(client, job, str(tmp_path / "out"), None, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Problem, match="lie elsewhere"):
        fetch.Staging(tmp_path / "out", "d").prepare([fetch.File(name, 3)])


def test_fetch_overwrites_nothing_and_creates_no_pod_in_vain(
    cluster: Cluster, client: Client, job: Any, tmp_path: Path
) -> None:
    with pytest.raises(Problem, match="is not empty"):
        fetch.fetch(client, job, str(tmp_path), None, 5)
    unfinished = {**job, "status": {**job["status"], "phase": "Running"}}
    with pytest.raises(Problem, match="a is Running: only a job that has Succeeded"):
        fetch.fetch(client, unfinished, str(tmp_path / "out"), None, 5)
    cluster.claim = None
    job["status"]["artifact"]["published"] = "s3://bucket/a"
    with pytest.raises(Problem, match=r"no longer exists: there is no claim work\. A copy .* s3://bucket/a"):
        fetch.fetch(client, job, str(tmp_path / "out"), None, 5)
    assert cluster.created == []


def test_report_prints_what_preparing_wrote(cluster: Cluster, client: Client, job: Any) -> None:
    assert report.data_report(client, job, "text", None, 5) == "# Prepared data of a\n[[wörter]]\n"
    assert json.loads(report.data_report(client, job, "json", None, 5)) == {"job": "a"}
    with pytest.raises(Problem, match="no broken rows"):
        report.data_report(client, job, "rows", None, 5)
    (cluster.workspace / "jobs/a/reports/prepare.md").unlink()
    with pytest.raises(Problem, match="no report yet") as caught:
        report.data_report(client, job, "text", None, 5)
    assert caught.value.code is Exit.NOT_FOUND
    assert len(cluster.deleted) == 4


def test_the_whole_curve_comes_from_the_log(client: Client, job: Any) -> None:
    assert report.full_curve(client, job, "loss", None, 5) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    with pytest.raises(Problem, match=r"no metric accuracy\. It has: learningRate, loss"):
        report.full_curve(client, job, "accuracy", None, 5)


def test_questions_are_answered_one_after_the_other(cluster: Cluster, client: Client, job: Any) -> None:
    parts: list[str] = []

    def talk(line: str) -> list[str]:
        answer = f"{json.loads(line)}!"
        return [
            "a library says this",
            *(json.dumps({"text": part}) for part in answer.split()),
            json.dumps({"answer": answer}),
        ]

    cluster.talk = talk
    need = ask.need_of(job, None, False, None)
    options: dict[str, Any] = {"base": False, "max_new_tokens": 9, "timeout": 5, "emit": parts.append}
    found = list(ask.answers(client, job, ["one two", "drei\nfünf"], need, **options))
    assert found == [("one two", "one two!"), ("drei\nfünf", "drei\nfünf!")]
    assert parts == ["one", "two!", "drei", "fünf!"]
    assert "one two" not in json.dumps(cluster.created + cluster.commands)
    assert cluster.created[0]["spec"]["containers"][0]["resources"]["limits"] == {"memory": "16Gi"}
    job["spec"]["stage"] = "rm"
    with pytest.raises(Problem, match="--base"):
        ask.check(job, False)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["report", "a"], "# Prepared data of a\n[[wörter]]\n"),
        (["report", "a", "-o", "yaml"], "job: a\n"),
        (["ask", "a", "why?"], "why? why?!\n"),
        (["ask", "a", "--file", "questions"], "> one\none one!\n\n> two\ntwo two!\n\n"),
        (["plot", "a", "--full", "--metric", "learningRate", "-o", "json"], '{"a": [[1, 0.1], [2, 0.1], [3, 0.1]]}'),
        (["fetch", "a"], "artifact, "),
    ],
)
def test_the_commands_print_what_they_are_asked_for(
    cluster: Cluster,
    client: Client,
    job: Any,
    words: list[str],
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def talk(line: str) -> list[str]:
        return [
            json.dumps({"text": f"{json.loads(line)} "}),
            json.dumps({"text": f"{json.loads(line)}!"}),
            '{"answer": "x"}',
        ]

    job["status"]["artifact"]["kind"] = "artifact"
    cluster.job, cluster.talk = job, talk
    (tmp_path / "questions").write_text("one\n\n two \n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("finetune_cli.cluster.client.client", lambda *_: client)
    monkeypatch.setattr("sys.argv", ["finetune", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    out = capsys.readouterr().out
    assert ended.value.code in (None, 0)
    assert shown in (json.dumps(json.loads(out)) if words[-1] == "json" else out)
    assert not cluster.pods


def test_what_the_user_may_not_do_is_named(cluster: Cluster, client: Client, job: Any) -> None:
    for what in ("create pods", "list pods", "get pods/exec"):
        cluster.refused = {what}
        with pytest.raises(Problem, match="needs: get, list, create and delete pods") as caught:
            report.data_report(client, job, "text", None, 5)
        assert caught.value.code is Exit.DENIED
        assert f"You may not {what}" in str(caught.value)
    assert len(cluster.created) == len(cluster.deleted) == 1


def test_a_pod_that_cannot_be_removed_is_named(
    cluster: Cluster, client: Client, job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.refused = {"delete pods"}
    assert report.data_report(client, job, "text", None, 5)
    assert f"kubectl delete pod {cluster.created[0]['metadata']['name']}" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_the_pod_is_removed_whatever_ends_the_command(
    cluster: Cluster, client: Client, job: Any, error: type[BaseException]
) -> None:
    seen: list[int] = []

    def work() -> None:
        with session.opened(client, job, Need(60), 5):
            seen.append(len(cluster.pods))
            raise error

    with pytest.raises(error):
        work()
    assert seen == [1]
    assert not cluster.pods


def test_pods_of_commands_that_were_killed_are_removed(cluster: Cluster, client: Client, job: Any) -> None:
    labels = {"finetune-operator.io/reads": "a"}
    for name, phase in (("old", "Failed"), ("busy", "Running")):
        cluster.pods[name] = {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"phase": phase}}
    report.data_report(client, job, "text", None, 5)
    assert list(cluster.pods) == ["busy"]


def waiting_for(reason: str, message: str) -> Any:
    state = {"name": "reader", "state": {"waiting": {"reason": reason, "message": message}}}
    return {"phase": "Pending", "containerStatuses": [state]}


@pytest.mark.parametrize(
    ("status", "words", "code"),
    [
        (waiting_for("InvalidImageName", "bad"), "InvalidImageName: bad", Exit.FAILED),
        (waiting_for("ImagePullBackOff", "no such image"), "volume is lost", Exit.TIMEOUT),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}],
            },
            "--queue NAME",
            Exit.FAILED,
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "node is full"}, "Evicted: node is full", Exit.FAILED),
    ],
)
def test_a_pod_that_does_not_run_says_why(
    cluster: Cluster, client: Client, job: Any, status: Any, words: str, code: Exit
) -> None:
    cluster.status = status
    with pytest.raises(Problem, match=words) as caught:
        report.data_report(client, job, "text", None, 0.01)
    assert caught.value.code is code
    assert not cluster.pods


def test_a_pod_that_ends_during_a_command_says_why(cluster: Cluster, client: Client, job: Any) -> None:
    terminated = {"name": "reader", "state": {"terminated": {"reason": "OOMKilled"}}}

    def kill() -> None:
        for each in cluster.pods.values():
            each["status"] = {"phase": "Failed", "containerStatuses": [terminated]}

    cluster.on_exec, cluster.cuts = kill, [0]
    with pytest.raises(Problem, match="needs more memory"):
        report.data_report(client, job, "text", None, 5)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ((1, "/usr/bin/python: No module named finetune_trainer.reader"), "of an earlier release"),
        ((74, "log\n/workspace/x cannot be read: Input/output error"), "cannot be read: Input/output error"),
        ((137, ""), "needs more memory"),
    ],
)
def test_a_command_that_fails_says_why(
    cluster: Cluster, client: Client, job: Any, end: tuple[int, str], words: str
) -> None:
    cluster.ends_with = end
    with pytest.raises(Problem, match=words):
        report.data_report(client, job, "text", None, 5)


def test_a_silent_connection_is_broken(
    cluster: Cluster, client: Client, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is there answers a ping; here it has no time to."""
    monkeypatch.setattr(remote, "PING_SECONDS", 0.01)
    monkeypatch.setattr(remote, "SILENCE_SECONDS", 0.0)
    cluster.talk = lambda _: []
    with pytest.raises(Problem, match="was silent for"):
        next(ask.answers(client, job, ["?"], Need(1), base=False, max_new_tokens=1, timeout=5, emit=print))
