"""The web page in a browser, as a user with rights in one namespace: the form, a run that is watched, and its buttons.

One training: it is as long as the buttons need it, because "Stop and keep" ends it. `FINETUNE_PAGE=played` tries the
same steps without a cluster (played_cluster.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_ui import form
from playwright.sync_api import Browser, Locator, expect

from tests import chart
from tests.e2e.browser import CHECKOUT, DESKTOP, PHONE, Server, Visitor, chromium, in_pod, on_laptop, visitor
from tests.e2e.conftest import LONG, POD_MINUTES, Scene
from tests.e2e.played_cluster import NAMESPACE, TOKEN, played
from tests.kube import until

Object = dict[str, Any]
EXAMPLES = {"pt": "pt", "sft": "sft-lora", "rm": "rm", "dpo": "dpo", "ppo": "ppo", "kto": "kto"}
OWN_SECTION = ("rm", "dpo", "ppo", "kto")
USER = "page-user"
NAME, CLONE = "by-hand", "by-hand-again"
PODS = POD_MINUTES * 1000


@dataclass(frozen=True)
class Place:
    """Where the page looks, and what it shall find there."""

    server: Server
    namespace: str
    job: Object
    """What the form is filled with. It trains until it is stopped."""
    find: Callable[[str], Object | None]
    """The job with a name as the API server has it, whoever asks."""


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if os.environ.get("FINETUNE_PAGE") == "played":
        with played() as cluster:
            nobody: Any = None
            job = Scene(nobody, nobody, NAMESPACE).job(NAME, **LONG)
            yield Place(Server(cluster.api.url, TOKEN), NAMESPACE, job, cluster.find)
        return
    scene: Scene = request.getfixturevalue("scene")

    def found(name: str) -> Object | None:
        return scene.kube.find("FineTuneJob", name, scene.namespace)

    with a_user(scene) as server:
        yield Place(server, scene.namespace, scene.job(NAME, **LONG), found)


@contextmanager
def a_user(scene: Scene) -> Iterator[Server]:
    """A ServiceAccount that may use FineTuneJobs and pods in the namespace, and nothing elsewhere."""
    head = {"namespace": scene.namespace}
    account = {"kind": "ServiceAccount", "name": USER, **head}
    scene.kubectl.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": USER, **head}})
    roles = ("edit", f"{chart.RELEASE}-viewer", f"{chart.RELEASE}-editor")
    for role in roles:
        scene.kubectl.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": f"{USER}-{role}", **head},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [account],
            }
        )
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    path = f"api/v1/namespaces/{scene.namespace}/serviceaccounts/{USER}/token"
    token = scene.kube.call("POST", path, asked)["status"]["token"]
    cluster = yaml.safe_load(scene.kube.kubeconfig.read_text())["clusters"][0]["cluster"]
    try:
        yield Server(cluster["server"], token, cluster["certificate-authority-data"])
    finally:
        for name in (NAME, CLONE):
            scene.kube.delete("FineTuneJob", name, scene.namespace)
        for role in roles:
            scene.kube.delete("RoleBinding", f"{USER}-{role}", scene.namespace)
        scene.kube.delete("ServiceAccount", USER, scene.namespace)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=60_000)
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def opened(place: Place, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """The window that `kubectl finetune ui` opens."""
    folder = tmp_path_factory.mktemp("laptop")
    with (
        on_laptop(place.server, place.namespace, folder) as entrance,
        visitor(browser, entrance.partition("/enter")[0]) as window,
    ):
        window.page.goto(entrance)
        assert window.page.url == f"{window.address}/ns/{place.namespace}/jobs", "the key has left the address"
        yield window


@pytest.fixture
def window(opened: Visitor) -> Iterator[Visitor]:
    """The window, which shows neither an error nor a violation of the policy in any test."""
    yield opened
    assert opened.problems == []


@pytest.mark.parametrize("stage", EXAMPLES)
def test_the_form_makes_a_job_of_each_stage_that_the_server_accepts(window: Visitor, place: Place, stage: str) -> None:
    job = yaml.safe_load((CHECKOUT / "examples" / f"{EXAMPLES[stage]}.yaml").read_text())
    job["metadata"] = {"name": f"page-{stage}", "namespace": place.namespace}
    window.go(f"/ns/{place.namespace}/train")
    choose_stage(window, stage)
    window.page.locator("#load-text").fill(yaml.safe_dump(job))
    window.press("Load YAML")
    expect(window.control("metadata.name")).to_have_value(f"page-{stage}")
    window.press("Preview")
    assert yaml.safe_load(window.page.locator("section pre").inner_text()) == job
    window.press("Check")
    window.shows("It is not created yet")
    expect(window.page.get_by_role("button", name="Estimate the memory")).to_be_enabled()
    assert barriers(window) == {}
    assert place.find(f"page-{stage}") is None


def choose_stage(window: Visitor, stage: str) -> None:
    """From the list. The settings of the stage come without another page."""
    mark(window)
    window.control("spec.stage").select_option(stage)
    for other in OWN_SECTION:
        expect(window.page.locator(f'[id="spec.{other}"]')).to_have_count(int(other == stage))
    assert marked(window)


def mark(window: Visitor) -> None:
    """A page that is loaded again loses the mark."""
    window.page.evaluate("window.mark = 1")


def marked(window: Visitor) -> bool:
    return bool(window.page.evaluate("window.mark === 1"))


def fill(window: Visitor, job: Object) -> None:
    """Type a job into the form of a new job, control by control."""
    wanted = form.values(job)
    for name in form.values(form.new()):
        if name not in wanted and name != "spec.stage":
            put(window.control(name), "")
    for name, text in wanted.items():
        if name not in ("spec.stage", "metadata.namespace"):
            put(window.control(name), text)


def put(control: Locator, text: str) -> None:
    if control.evaluate("(found) => found.tagName") == "SELECT":
        control.select_option(text)
    else:
        control.fill(text)


@pytest.mark.sweep  # it takes five minutes: curves come once a minute
def test_a_run_is_created_watched_suspended_resumed_compared_and_kept(
    window: Visitor, place: Place, browser: Browser, tmp_path: Path
) -> None:
    jobs, own = f"/ns/{place.namespace}/jobs", f"/ns/{place.namespace}/jobs/{NAME}"
    window.go(f"/ns/{place.namespace}/train")
    fill(window, place.job)
    window.press("Create")
    window.page.wait_for_url(window.address + own)
    made = place.find(NAME)
    assert made is not None
    assert has(made["spec"], place.job["spec"])

    mark(window)
    it_moves(window)
    reached = step(window)
    window.press("Suspend")
    expect(phase(window)).to_have_text("Suspended", timeout=PODS)
    expect(window.page.locator("#button-suspend")).to_have_count(0)
    window.press("Resume")
    expect(phase(window)).to_have_text("Running", timeout=PODS)
    it_moves(window, reached)
    assert marked(window), "all of this came without loading the page again"

    nothing_is_lost(window, place, browser, tmp_path)
    a_clone_is_compared_and_deleted(window, place)
    window.go(own)
    window.follow("Logs")
    expect(window.page.locator("#log")).to_contain_text("loss")
    no_page_has_barriers(window, place)

    window.go(own)
    mark(window)
    window.press("Stop and keep")
    window.shows(f"End the training of {NAME} now")
    window.press("Stop and keep")
    window.page.wait_for_url(window.address + own)
    expect(phase(window)).to_have_text("Succeeded", timeout=PODS)
    window.shows("PeftModel.from_pretrained")
    deleted(window, NAME)
    until("the job is gone", lambda: place.find(NAME) is None)
    expect(window.page.get_by_role("link", name=NAME, exact=True)).to_have_count(0)
    assert window.page.url == window.address + jobs


def has(found: Any, wanted: Any) -> bool:
    """Whether an object has all of another. The API server adds defaults."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(has(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(has, found, wanted))
    return bool(found == wanted)


def phase(window: Visitor) -> Locator:
    return window.page.locator("#job-head .phase")


def summary(window: Visitor) -> Locator:
    """Such as 120/100000 (0%)."""
    return window.page.locator("#job-head .number")


def step(window: Visitor) -> int:
    return int(summary(window).inner_text().partition("/")[0])


def it_moves(window: Visitor, beyond: int = 0) -> None:
    """Wait for progress of a training, and for more progress: as a text and as a curve."""
    total = re.compile(r"^\d+/100000 ")
    expect(summary(window)).to_have_text(total, timeout=PODS)
    until(f"the page shows a step beyond {beyond}", lambda: step(window) > beyond, POD_MINUTES)
    loss = window.page.locator("#plots figure").first
    # The trainer writes its curves once a minute.
    expect(loss.locator("canvas")).to_have_count(1, timeout=PODS)
    before, drawn = summary(window).inner_text(), str(loss.get_attribute("aria-label"))
    assert drawn.startswith("loss: "), "the loss is the first chart, also after a line was added to it"
    expect(summary(window)).not_to_have_text(before, timeout=PODS)
    expect(loss).not_to_have_attribute("aria-label", drawn, timeout=PODS)


def nothing_is_lost(window: Visitor, place: Place, browser: Browser, folder: Path) -> None:
    """After a reload, after going back, and in another browser at another process of the page, with a pasted token."""
    at = step(window)
    window.page.reload()
    assert step(window) >= at
    window.follow("All jobs")
    window.page.locator("#q").fill(NAME)
    window.press("Show")
    listed = window.page.url
    window.follow(NAME)
    assert step(window) >= at
    window.page.go_back()
    assert window.page.url == listed
    expect(window.page.get_by_role("link", name=NAME, exact=True)).to_be_visible()
    with in_pod(place.server, folder) as (address, _), visitor(browser, address) as other:
        other.go(f"/ns/{place.namespace}/jobs/{NAME}")
        assert barriers(other) == {}
        other.page.get_by_label("Token").fill(place.server.token)
        other.press("Log in")
        other.page.wait_for_url(f"{address}/ns/{place.namespace}/jobs/{NAME}")
        assert step(other) >= at
        expect(other.page.locator("#plots figure canvas").first).to_be_visible()
        assert place.server.token not in other.page.content()
        other.go("/?choose=1")
        assert barriers(other) == {}
        other.press("Log out")
        other.go(f"/ns/{place.namespace}/jobs")
        assert other.page.url.startswith(f"{address}/login")
        assert other.problems == []


def a_clone_is_compared_and_deleted(window: Visitor, place: Place) -> None:
    """The clone never starts: it is suspended from its birth."""
    window.go(f"/ns/{place.namespace}/jobs/{NAME}")
    window.follow("Clone")
    wanted = form.values(place.job)
    for name in ("spec.model.source", "spec.training.maxSteps", "spec.tuning.lora.rank", "spec.resources.memory"):
        expect(window.control(name)).to_have_value(wanted[name])
    put(window.control("metadata.name"), CLONE)
    put(window.control("spec.training.learningRate"), "0.0005")
    put(window.control("spec.suspend"), "true")
    window.press("Create")
    window.page.wait_for_url(f"{window.address}/ns/{place.namespace}/jobs/{CLONE}")
    expect(phase(window)).to_have_text("Suspended", timeout=PODS)
    window.follow("All jobs")
    for name in (NAME, CLONE):
        window.page.get_by_label(f"Select {name} to compare it", exact=True).check()
    window.press("Compare the selected jobs")
    expect(window.page.locator("#plots figure canvas")).to_be_visible()
    for name in (NAME, CLONE):
        assert window.page.get_by_role("columnheader", name=name, exact=True).count() >= 1
    row = window.page.get_by_role("row").filter(has_text="training.learningRate")
    assert "0.0005" in row.inner_text()
    mark(window)
    progress = window.page.get_by_role("row").filter(has_text="100000")
    expect(progress).not_to_have_text(progress.inner_text(), timeout=PODS)
    assert marked(window), "the comparison follows its jobs"
    assert barriers(window) == {}
    deleted(window, CLONE)
    until("the clone is gone", lambda: place.find(CLONE) is None)
    assert place.find(NAME) is not None


def deleted(window: Visitor, name: str) -> None:
    """By its button, and by the button of the page that asks."""
    namespace = window.page.url.partition("/ns/")[2].partition("/")[0]
    window.go(f"/ns/{namespace}/jobs/{name}")
    window.press("Delete")
    window.shows(f"Delete {name}?")
    window.press("Delete")
    window.page.wait_for_url(re.compile(r"/jobs$"))


def no_page_has_barriers(window: Visitor, place: Place) -> None:
    """On a desktop and on a phone."""
    own = f"/ns/{place.namespace}"
    found: Object = {}
    for path in (
        f"{own}/jobs",
        f"{own}/jobs/{NAME}",
        f"{own}/jobs/{NAME}/logs",
        f"{own}/jobs/{NAME}/confirm/delete",
        f"{own}/jobs/no-such-job",
    ):
        window.go(path)
        found |= barriers(window)
    window.problems[:] = [each for each in window.problems if "no-such-job" not in each]  # the console names the 404
    window.go(f"{own}/train?clone={NAME}")
    for summary in window.page.locator("details > summary").all()[:4]:
        summary.evaluate("(found) => { found.parentElement.open = true; }")
    window.press("Preview")
    found |= barriers(window)
    window.page.locator("#load-text").fill("kind: Pod")
    window.press("Load YAML")
    found |= barriers(window)
    assert found == {}, json.dumps(found, indent=1)


def barriers(window: Visitor) -> Object:
    """Width and address -> what axe finds, and whether the document scrolls to the side."""
    found: Object = {}
    for size in (DESKTOP, PHONE):
        window.resize(size)
        wide = [f"{window.overflow()} pixels too wide"] if window.overflow() > 0 else []
        if now := window.barriers() + wide:
            found[f"{size[0]} {window.page.url}"] = now
    window.resize(DESKTOP)
    return found
