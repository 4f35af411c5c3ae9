"""The demo: the display of a running job, the loss curve, and the image references for the chart."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from finetune_api.defaults import apply_defaults
from finetune_api.job import FineTuneJob

from examples.demo import cluster, ending, plot, view, volume
from examples.demo.kubectl import DemoError
from tests.cluster import teardown
from tests.cluster.state import State
from tests.kube import until

COPY_FILE = volume.CHECKOUT / "examples" / "copy" / "pod.yaml"
JOBS = sorted(set(volume.JOB_FILE.parent.rglob("*.yaml")) - {cluster.CLAIMS_FILE, COPY_FILE})
PROGRESS = {"percent": 50, "summary": "40/80 (50%)", "loss": "0.6312", "eta": "1m12s"}


def test_a_running_job_shows_bar_loss_and_eta() -> None:
    text = "\n".join(view.describe("demo", {"phase": "Running", "attempt": 2, "progress": PROGRESS}))
    assert "demo  Running  attempt 2" in text
    assert "█" * 15 + "░" * 15 in text
    assert "step 40/80 (50%)  loss 0.63  ETA 1m12s" in text


@pytest.mark.parametrize("phase", ["Pending", "Starting", "Failed"])
def test_a_job_that_does_not_run_shows_why(phase: str) -> None:
    status = {"phase": phase, "reason": "Unschedulable", "message": "no node has a GPU", "progress": PROGRESS}
    assert view.describe("demo", status)[1] == "  Unschedulable: no node has a GPU"


def test_a_job_without_status_is_pending() -> None:
    assert view.describe("demo", {}) == ["  demo  Pending"]


def test_without_a_terminal_no_line_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    shown = view.View("demo")
    for _ in range(3):
        shown.show({"phase": "Running", "progress": PROGRESS}, final=True)
    assert len(capsys.readouterr().out.splitlines()) == 1


def _dots(lines: list[str]) -> list[list[bool]]:
    """The plot as rows of dots."""
    cells = [line.split("│")[1] for line in lines if "│" in line]
    return [
        [bool(ord(cell) & plot.DOTS[row][column]) for cell in line for column in range(2)]
        for line in cells
        for row in range(4)
    ]


def test_the_curve_goes_from_corner_to_corner_without_a_gap() -> None:
    lines = plot.curve([(0, 4.0), (10, 2.0), (20, 0.0)], width=20, height=5)
    dots = _dots(lines)
    assert dots[0][0]
    assert dots[-1][-1]
    assert all(any(row[column] for row in dots) for column in range(40))
    assert lines[0].startswith("   4.00")
    assert lines[4].startswith("   0.00")
    assert lines[-1].split() == ["0", "20"]


@pytest.mark.parametrize("points", [[(1.0, 2.0)], [(1.0, 2.0), (2.0, 2.0)]])
def test_a_curve_with_a_single_value_is_drawn(points: list[tuple[float, float]]) -> None:
    assert any(any(row) for row in _dots(plot.curve(points)))


@pytest.mark.parametrize(
    ("image", "values"),
    [
        ("r.example:5000/a/b:v1", {"image.repository": "r.example:5000/a/b", "image.tag": "v1"}),
        ("r.example:5000/b@sha256:0a", {"image.repository": "r.example:5000/b", "image.digest": "sha256:0a"}),
    ],
)
def test_an_image_reference_becomes_values(image: str, values: dict[str, str]) -> None:
    assert cluster.image_values("image", image) == values


def test_an_image_without_tag_is_refused() -> None:
    with pytest.raises(DemoError, match="neither tag nor digest"):
        cluster.image_values("image", "r.example:5000/b")


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_every_example_is_a_valid_job(path: Path) -> None:
    job = FineTuneJob.model_validate(yaml.safe_load(path.read_text()))
    assert apply_defaults(job.spec).training.learning_rate


def test_the_claims_are_those_that_the_examples_name() -> None:
    """`make demo` creates these claims, and README.md tells people to apply them."""
    named = {name for path in JOBS for name in re.findall(r"(?:pvc://|claimName: )([-a-z0-9]+)", path.read_text())}
    assert {claim["metadata"]["name"] for claim in cluster.claims()} == named


def test_the_data_has_questions_with_answers_but_not_the_question_of_the_demo() -> None:
    rows = [json.loads(line)["messages"] for line in (volume.DATA / "finetunejobs.jsonl").read_text().splitlines()]
    assert len(rows) >= 200
    assert all(
        [m["role"] for m in row] == ["user", "assistant"] and all(m["content"].strip() for m in row) for row in rows
    )
    questions = [row[0]["content"] for row in rows]
    assert len(set(questions)) == len(questions)
    assert volume.QUESTION not in questions


def test_taking_a_cluster_down_keeps_what_the_demo_has_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo ends with the path of the picture, and the next command is often `make cluster-down`."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    named = volume.RESULTS.relative_to(volume.CHECKOUT)
    for name in ("local", "laptop"):
        state = State(name, "0a1b2c", str(tmp_path), control_plane_only=True)
        picture = tmp_path / named / name / ending.PICTURE
        for file in (picture, state.kubeconfig, state.directory / "state.json"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        teardown.down(state)
        assert picture.exists()
        assert not state.kubeconfig.exists()


def test_the_last_progress_of_preparing_is_not_shown_as_training() -> None:
    last = {"activity": "Tokenizing", "percent": 0, "summary": "Tokenizing 237 rows"}
    assert view.describe("demo", {"phase": "Running", "progress": last})[1] == "  loading the model and the data"


TRAINER = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print("trains", flush=True)
time.sleep(600)
"""
DEMO = """
import pathlib, sys
from examples.demo import __main__, laptop
folder = pathlib.Path(sys.argv.pop())
laptop.trainer_command = lambda *_: [sys.executable, str(folder / "trainer.py"), str(folder / "saved")]
laptop.run = lambda: laptop.train([], "demo", folder / "log", folder / "lines")
sys.exit(__main__.main())
"""


def test_a_demo_that_is_ended_ends_its_trainer(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    demo = subprocess.Popen([sys.executable, "-c", DEMO, "laptop", str(tmp_path)], stdout=subprocess.DEVNULL)
    until("the trainer trains", lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text(), 60)
    demo.terminate()
    assert demo.wait(60) == 143
    assert (tmp_path / "saved").read_text() == "saved"
