"""Curves go to the trackers that a job names, and no tracker can slow or fail the run."""

import base64
import importlib
import json
import logging
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from finetune_api.output import WandbSpec
from finetune_trainer.errors import Preempted
from finetune_trainer.reporting.trackers import callback, tensorboard, wandb
from finetune_trainer.reporting.trackers.sender import Sender
from finetune_trainer.run import Run
from finetune_trainer.stages.sft import workflow

from tests.trainer.support import tiny

STEPS = 4
UID = "12345-uid"
BLOCK, WHOLE, LAST = 1 << 15, 1, 4
Answer = tuple[int, dict[str, Any]]


def make_run(root: Path, reporting: dict[str, Any], *, attempt: int = 1, **sections: Any) -> Run:
    job = tiny.job(training={"maxSteps": STEPS}, reporting=reporting, **sections)
    return tiny.make_run(root, job, attempt=attempt)


def losses_by_step(run: Run) -> dict[int, float]:
    return dict(enumerate(tiny.losses(run), start=1))


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """The curves that TensorBoard shows for a directory."""
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    shown = events.EventAccumulator(str(folder))
    shown.Reload()
    return {tag: {event.step: event.value for event in shown.Scalars(tag)} for tag in shown.Tags()["scalars"]}


def test_tensorboard_shows_all_curves_of_all_attempts(root: Path) -> None:
    tiny.save_rows(root / "data" / "held.jsonl", rows=3)
    evaluation = {"datasets": [{"source": "pvc://data/held.jsonl", "format": "openai"}], "everySteps": 2}
    with pytest.raises(Preempted):
        workflow.run(tiny.stopped_at(make_run(root, {"tensorboard": True}, evaluation=evaluation), 1))
    run = make_run(root, {"tensorboard": True}, attempt=2, evaluation=evaluation)
    workflow.run(run)
    shown = curves(run.folders.reports / "tensorboard")
    assert shown["train/loss"] == pytest.approx(losses_by_step(run))
    assert shown["eval/loss"] == pytest.approx(dict(zip([2, 4], tiny.logged(run, "eval_loss"), strict=True)))
    assert {"train/learning_rate", "train/grad_norm", "eval/perplexity"} <= set(shown)


@pytest.mark.parametrize("kept", [0, 3])
def test_repeated_steps_replace_lost_ones(kept: int, tmp_path: Path) -> None:
    first = tensorboard.EventFiles(tmp_path, "run1", 0)
    for step in range(1, 6):
        first.log(step, {"train/loss": 1.0})
    first.close(done=False)
    second = tensorboard.EventFiles(tmp_path, "run2", kept)
    for step in range(kept + 1, 7):
        second.log(step, {"train/loss": 2.0})
    second.close(done=True)
    assert curves(tmp_path)["train/loss"] == {step: 1.0 if step <= kept else 2.0 for step in range(1, 7)}


@dataclass
class MlflowServer:
    """Answers like MLflow 3.17, for the calls that runs need."""

    url: str = ""
    refuse: Answer | None = None
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    authorization: set[str] = field(default_factory=set)
    experiments: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        self.calls.append((path, body))
        if self.refuse is not None:
            return self.refuse
        if path == "experiments/get-by-name":
            if body["experiment_name"] not in self.experiments:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No such experiment"}
            return 200, {"experiment": {"experiment_id": str(self.experiments.index(body["experiment_name"]))}}
        if path == "experiments/create":
            self.experiments.append(body["name"])
            return 200, {"experiment_id": str(len(self.experiments) - 1)}
        if path == "runs/create":
            self.runs.append({"run_id": f"r{len(self.runs)}", **body, "metrics": [], "params": {}, "status": "RUNNING"})
            return 200, {"run": {"info": {"run_id": self.runs[-1]["run_id"]}}}
        if path == "runs/search":
            runs = [run for run in self.runs if body["filter"] == f"tags.`{run['tags'][0]['key']}` = '{UID}'"]
            return 200, {"runs": [{"info": {"run_id": run["run_id"]}} for run in runs]} if runs else {}
        run = next(run for run in self.runs if run["run_id"] == body["run_id"])
        if path == "runs/update":
            run["status"] = body["status"]
        else:
            run["metrics"] += body.get("metrics", [])
            run["params"] |= {param["key"]: param["value"] for param in body.get("params", [])}
        return 200, {}


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], object]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture
def mlflow() -> Iterator[MlflowServer]:
    known = MlflowServer()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = urlsplit(handler.path)
        sent = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        body = json.loads(sent) if sent else {key: values[0] for key, values in parse_qs(asked.query).items()}
        known.authorization.add(handler.headers.get("Authorization", ""))
        assert asked.path.startswith("/api/2.0/mlflow/")
        code, content = known.answer(asked.path.removeprefix("/api/2.0/mlflow/"), body)
        handler.send_response(code)
        handler.end_headers()
        handler.wfile.write(json.dumps(content).encode())

    with serving(answer) as url:
        known.url = url
        yield known


def by_mlflow(url: str) -> dict[str, Any]:
    return {"mlflow": {"trackingUri": url, "experiment": "tiny models/one"}}


def test_mlflow_gets_one_run_per_job(root: Path, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "opensesame")
    with pytest.raises(Preempted):
        workflow.run(tiny.stopped_at(make_run(root, by_mlflow(mlflow.url)), 1))
    (interrupted,) = mlflow.runs
    assert interrupted["status"] == "RUNNING"
    run = make_run(root, by_mlflow(mlflow.url), attempt=2)
    workflow.run(run)

    assert mlflow.experiments == ["tiny models/one"]
    (run_on_server,) = mlflow.runs
    assert (run_on_server["run_name"], run_on_server["status"]) == ("default/tiny", "FINISHED")
    losses = {metric["step"]: metric["value"] for metric in run_on_server["metrics"] if metric["key"] == "train/loss"}
    assert losses == losses_by_step(run)
    assert run_on_server["params"]["training.learningRate"] == "0.01"
    assert mlflow.authorization == {f"Basic {base64.b64encode(b'ann:opensesame').decode()}"}
    sent = json.dumps(mlflow.calls)
    assert "opensesame" not in sent
    assert "user" not in sent  # no row


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "curves" in record.getMessage()
    ]


def test_a_tracker_that_refuses_leaves_a_warning(
    root: Path, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "opensesame")
    mlflow.refuse = 401, {"message": "who are you?"}
    assert workflow.run(make_run(root, by_mlflow(mlflow.url))).metrics["steps"] == str(STEPS)
    (warning,) = warnings(caplog)
    assert warning.startswith("MLflow gets no more curves of this run, which continues: Refused: 401")
    assert "who are you?" in warning
    assert "opensesame" not in caplog.text
    assert mlflow.authorization == {"Bearer opensesame"}


def test_a_tracker_that_hangs_is_not_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callback, "FLUSH_SECONDS", 0.2)
    over = threading.Event()
    with serving(lambda _: str(over.wait())) as url:
        outcome = workflow.run(make_run(root, by_mlflow(url)))
        over.set()
    assert outcome.metrics["steps"] == str(STEPS)
    (warning,) = warnings(caplog)
    assert warning.endswith("it did not take the last values within 0.2 s")


def test_a_tracker_whose_client_is_missing_leaves_a_warning(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("finetune_trainer.reporting.trackers.sender.PAUSES", ())
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = make_run(root, {"wandb": {"project": "tiny", "secret": "keys"}})
    assert workflow.run(run).metrics["steps"] == str(STEPS)
    (warning,) = warnings(caplog)
    assert warning.startswith("Weights & Biases gets no more curves of this run, which continues: ModuleNotFoundError")


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: seven bytes, then the log format of LevelDB."""
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := BLOCK - at % BLOCK) < 7:  # no room for a header
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            yield record
            record = b""


def test_weights_and_biases_gets_curves_and_settings_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, which writes to a file when it is offline."""
    record_type: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = SimpleNamespace(name=str(tmp_path), cleanup=lambda: None)
    monkeypatch.setattr(wandb, "tempfile", SimpleNamespace(TemporaryDirectory=lambda **_: folder))
    client = wandb.Client(WandbSpec(project="tiny", secret="keys"), "default/tiny", f"tiny-{UID}", {"stage": "sft"})
    client.log(1, {"train/loss": 2.0})
    client.log(3, {"train/loss": 1.0, "eval/loss": 1.5})
    client.close(done=True)

    (file,) = tmp_path.rglob("*.wandb")
    records = [record_type.FromString(record) for record in wandb_records(file)]
    history = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(h["_step"], h["train/loss"], h.get("eval/loss")) for h in history] == [(1, 2.0, None), (3, 1.0, 1.5)]
    opened = next(record.run for record in records if record.HasField("run"))
    assert (opened.run_id, opened.project, opened.display_name) == (f"tiny-{UID}", "tiny", "default/tiny")
    settings = {item.key: json.loads(item.value_json) for item in opened.config.update if item.key != "_wandb"}
    assert settings == {"stage": "sft"}
    assert not opened.host
    assert not opened.git.remote_url
    kinds = {record.WhichOneof("record_type") for record in records}
    assert not kinds & {"output", "output_raw", "stats", "environment"}


def test_a_failed_call_of_a_tracker_is_retried() -> None:
    steps: list[int] = []
    closed: list[bool] = []

    class Flaky:
        def log(self, step: int, _values: Any) -> None:
            steps.append(step)
            if len(steps) == 1:
                raise ConnectionResetError("just now")

        def close(self, done: bool) -> None:
            closed.append(done)

    sender = Sender("Flaky", Flaky, pauses=(0.0,))
    sender.log(1, {})
    sender.log(2, {})
    sender.close(True, 60.0)
    assert closed == [True]
    assert steps == [1, 1, 2]
