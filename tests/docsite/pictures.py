"""`python -m tests.docsite.pictures`: take the pictures of the web page for docs/pictures.

The page is the real page. The cluster behind it is played (tests/e2e/played_cluster.py), so the jobs are made up, and
their curves are formulas: docs/web-page.md says so. Nothing is trained for a picture.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import yaml
from PIL import Image

from tests.e2e.browser import CHECKOUT, DESKTOP, PHONE, Server, Visitor, chromium, in_pod, visitor
from tests.e2e.played_cluster import NAMESPACE, TOKEN, artifact, loss_at, now, progress
from tests.unit.ui.api_server import ApiServer, Object, job, pod, served

PICTURES = CHECKOUT / "docs" / "pictures"
BYTES = 150_000
JOBS = f"/ns/{NAMESPACE}/jobs"


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with served() as api, tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for at, made in enumerate(jobs()):
            made["metadata"]["creationTimestamp"] = now(ago=600 + 2700 * at)
            api.put(made)
        log_of(api, "support-sft")
        server = Server(api.url, TOKEN)
        with in_pod(server, Path(folder)) as (address, _):
            with visitor(browser, address, DESKTOP, locale="en-GB", timezone_id="UTC") as window:
                desktop(window)
                cookies = window.context.storage_state()
            with visitor(browser, address, PHONE, storage_state=cookies, color_scheme="dark") as phone:
                phone.go(f"{JOBS}/support-sft")
                take(phone, "phone")


def desktop(window: Visitor) -> None:
    """Every page."""
    window.go("/login")
    take(window, "login")
    window.page.get_by_label("Token").fill(TOKEN)
    window.press("Log in")
    for name, path in (
        ("jobs", JOBS),
        ("job", f"{JOBS}/support-sft"),
        ("failed", f"{JOBS}/answers-ppo"),
        ("compare", f"/ns/{NAMESPACE}/compare?job=support-sft&job=support-sft-slow"),
        ("logs", f"{JOBS}/support-sft/logs"),
        ("train", f"/ns/{NAMESPACE}/train"),
    ):
        window.go(path)
        take(window, name)
    example = (CHECKOUT / "examples" / "dpo.yaml").read_text()
    window.page.locator("#load-text").fill(example)
    window.press("Load YAML")
    window.press("Preview")
    take(window, "preview")


def take(window: Visitor, name: str) -> None:
    """Write the picture of what the window shows."""
    window.page.wait_for_load_state()
    window.page.wait_for_timeout(700)  # curves and log lines come after the page
    shown = Image.open(io.BytesIO(window.page.screenshot(animations="disabled"))).convert("RGB")
    file = PICTURES / f"{name}.png"
    shown.save(file, optimize=True)
    size = file.stat().st_size
    print(f"{file.relative_to(CHECKOUT)}  {shown.width} x {shown.height}  {size / 1000:.0f} kB", flush=True)
    if size > BYTES:
        raise SystemExit(f"{file} has more than {BYTES} bytes")


def jobs() -> list[Object]:
    """One job for each stage and state that a picture shows, the newest first."""
    running = example("support-sft", "sft-lora", phase="Running", reason="Running", attempt=1)
    running["spec"]["training"]["maxSteps"] = 240
    running["status"] |= {
        "progress": progress(168, 240),
        "prepared": {"rows": 4812, "tokens": 1_204_388},
        "attempts": [{"number": 1, "startTime": now(540), "runningTime": now(500), "job": "support-sft-1"}],
        "checkpoint": {"step": 160, "time": now(40), "path": "jobs/support-sft/checkpoints/160"},
        "gpu": {"seconds": 540, "hours": "0.15"},
    }
    slow = example("support-sft-slow", "sft-lora", phase="Succeeded", reason="Completed", attempt=1)
    slow["spec"]["training"] |= {"maxSteps": 240, "learningRate": 0.0005}
    slow["status"] |= {
        "progress": progress(240, 240, speed=95, seed=2),
        "artifact": artifact("support-sft-slow"),
        "metrics": {"finalLoss": "0.5216", "trainLoss": "0.9127", "steps": "240"},
    }
    queued = example("prefer-short", "dpo", phase="Queued", reason="WaitingForQuota")
    queued["status"]["message"] = "Kueue has not admitted the job yet: the quota of team-a is in use (place 2)."
    failed = example("answers-ppo", "ppo", phase="Failed", reason="InvalidData", attempt=1)
    failed["status"] |= {
        "message": "pvc://models/data/finetunejobs.jsonl:118: the row has no message of the role assistant.",
        "prepareAttempts": [
            {
                "number": 1,
                "startTime": now(900),
                "endTime": now(860),
                "job": "answers-ppo-p1",
                "reason": "InvalidData",
                "exitCode": 3,
                "message": "finetunejobs.jsonl:118: the row has no message of the role assistant.",
            }
        ],
    }
    scored = example("score-answers", "rm", phase="Succeeded", reason="Completed", attempt=1)
    scored["status"] |= {"progress": progress(120, 120, speed=25), "artifact": artifact("score-answers")}
    paused = example("thumbs-kto", "kto", phase="Suspended", reason="SuspendedByUser", attempt=1)
    paused["spec"]["suspend"] = True
    paused["status"] |= {"progress": progress(70, 300, speed=60, seed=3)}
    read = example("manuals-pt", "pt", phase="Preparing", reason="Preparing")
    return [running, queued, read, failed, paused, slow, scored]


def example(name: str, file: str, **status: object) -> Object:
    """A job with the specification of an example."""
    spec = yaml.safe_load((CHECKOUT / "examples" / f"{file}.yaml").read_text())["spec"]
    return {**job(name, NAMESPACE, **status), "spec": spec}


def log_of(api: ApiServer, name: str) -> None:
    """A pod, and the lines of its log."""
    made = api.jobs[NAMESPACE, name]
    api.pods.append(pod(made))
    points = made["status"]["progress"]
    api.log += ["model pvc://models/SmolLM2-135M-Instruct loaded", "4,812 rows in 602 batches"]
    total = points["totalSteps"]
    api.log += [f"step {step}/{total}  loss {loss_at(step):.4f}  3150 tokens/s" for step in range(5, 170, 5)]


if __name__ == "__main__":
    main()
