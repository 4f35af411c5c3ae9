"""What others may try: forged forms, scripts in names and messages, paths, and forms that are too large."""

from __future__ import annotations

import pytest
from finetune_api.curves import pack
from finetune_ui.app import Page, private
from finetune_ui.fetches import Fetch
from finetune_ui.security import BODY_BYTES
from starlette.testclient import TestClient

from tests.unit.ui.api_server import ApiServer, job, pod
from tests.unit.ui.conftest import Browser, csrf

SCRIPT = '<script>alert("1")</script><img src=x onerror=alert(1)>\'">'
CHANGES = [route.path for route in private() if "POST" in (route.methods or ())]


@pytest.fixture
def client(browser: Browser, api: ApiServer) -> TestClient:
    api.put(job("mine"))
    return browser()


@pytest.mark.parametrize("path", [*CHANGES, "/login", "/logout"])
@pytest.mark.parametrize("how", ["without a token", "with a token of another browser", "with another site's request"])
def test_a_forged_form_changes_nothing(
    client: TestClient, browser: Browser, api: ApiServer, path: str, how: str
) -> None:
    forms = {
        "without a token": {},
        "with a token of another browser": {"csrf": csrf(browser())},
        "with another site's request": {"csrf": csrf(client)},
    }
    headers = {"Sec-Fetch-Site": "cross-site"} if "another site's" in how else {}
    where = path.replace("{namespace:name}", "team-a").replace("{name:name}", "mine").replace("{verb}", "suspend")
    data = {**forms[how], "uid": "uid-team-a-mine", "token": "token-of-b"}
    before = len(api.asked)
    assert client.post(where, data=data, headers=headers).status_code == 403
    assert api.asked[before:] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/login"),
        ("GET", "/"),
        ("GET", "/ns/team-a/jobs"),
        ("GET", "/ns/team-b/jobs"),
        ("GET", "/ns/team-a/jobs/mine"),
        ("GET", "/nothing"),
        ("GET", "/static/app.js"),
        ("GET", "/static/nothing"),
        ("POST", "/login"),
        ("PUT", "/login"),
        ("GET", "/healthz"),
    ],
)
def test_every_answer_forbids_foreign_and_inline_code(client: TestClient, method: str, path: str) -> None:
    headers = client.request(method, path).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"


def test_an_error_of_ours_has_the_same_headers_and_no_details(
    client: TestClient, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("inner words")

    monkeypatch.setattr("finetune_ui.listing.select", broken)
    answer = client.get("/ns/team-a/jobs")
    assert answer.status_code == 500
    assert "content-security-policy" in answer.headers
    assert "inner words" not in answer.text


def test_pages_have_no_inline_code_that_the_policy_would_stop(client: TestClient) -> None:
    for path in ("/login", "/ns/team-a/jobs", "/ns/team-a/jobs/mine", "/ns/team-a/jobs/mine/logs"):
        text = client.get(path).text
        assert "<script>" not in text
        assert " style=" not in text
        assert " onclick=" not in text
        assert "hx-on" not in text


def hostile(name: str) -> dict[str, object]:
    """A job whose every text is an attack. Kubernetes would refuse such a name; the page does not depend on it."""
    made = job(
        name,
        phase="Queued",
        reason=SCRIPT,
        message=SCRIPT,
        conditions=[
            {
                "type": SCRIPT,
                "status": "True",
                "reason": SCRIPT,
                "message": SCRIPT,
                "lastTransitionTime": SCRIPT,
            }
        ],
        progress={
            "attempt": 1,
            "summary": SCRIPT,
            "percent": SCRIPT,
            "loss": SCRIPT,
            "eta": SCRIPT,
            "epoch": SCRIPT,
            "curves": pack({SCRIPT: [(1, 2.0), (2, 1.0)], "loss": [(1, 2.0), (2, 1.0)]}),
        },
        artifact={"uri": SCRIPT, "kind": SCRIPT, "digest": SCRIPT, "sizeBytes": 1, "published": SCRIPT, "base": SCRIPT},
        gpu={"hours": SCRIPT},
        metrics={SCRIPT: SCRIPT},
    )
    made["metadata"]["uid"] = SCRIPT
    made["metadata"]["labels"] = {SCRIPT: SCRIPT}
    made["spec"] |= {"stage": SCRIPT, "model": {"source": SCRIPT}}
    return made


@pytest.mark.parametrize(
    "path",
    [
        "/jobs",
        "/jobs/mine",
        "/jobs/mine/timeline",
        "/jobs/mine/graph",
        "/jobs/mine/logs",
        "/jobs/mine/confirm/delete",
        "/compare?job=mine&job=other",
        f"/jobs?q={SCRIPT}&sort={SCRIPT}&phase={SCRIPT}&page={SCRIPT}",
        f"/jobs/mine/logs?pod={SCRIPT}",
        f"/compare?job={SCRIPT}&metric={SCRIPT}",
    ],
)
def test_no_text_of_a_job_becomes_code(client: TestClient, api: ApiServer, path: str) -> None:
    for name in ("mine", "other"):
        api.put(hostile(name))
    api.put({**hostile("third"), "spec": {**job("x")["spec"], "model": {"fromJob": "mine"}}})
    api.events.append({"reason": SCRIPT, "message": SCRIPT, "metadata": {"creationTimestamp": SCRIPT}})
    evil = pod(job("mine"))
    evil["metadata"]["name"] = f"mine-{SCRIPT[:5]}-{SCRIPT}"
    api.pods.append(evil)
    text = client.get(f"/ns/team-a{path}").text
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text or "?" in path


def test_no_message_of_the_api_server_becomes_code(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.ui.api_server.READ_ONLY", SCRIPT)
    for headers in ({}, {"HX-Request": "true"}):
        text = client.get(f"/ns/team-a/jobs/{'x' * 10}", headers=headers).text
        assert "There is no FineTuneJob" in text
        assert "<script>" not in text


def test_no_sample_of_the_data_becomes_code(client: TestClient, page: Page, api: ApiServer) -> None:
    user = page.state.ui.sessions.of_token("token-of-a")
    for fetch in (Fetch(user.client(), 1e12, result=SCRIPT), Fetch(user.client(), 1e12, problem=SCRIPT)):
        page.state.ui.fetches._fetches[user.key, "report uid-team-a-mine"] = fetch
        text = client.get("/ns/team-a/jobs/mine/report").text
        assert "&lt;script&gt;" in text
        assert "<script>" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/ns/team-a%2f..%2fteam-b/jobs",
        "/ns/team-a/jobs/..%2f..%2f..%2fteam-b%2ffinetunejobs%2ftheirs",
        "/ns/team-a/jobs/mine%2fstatus",
        "/ns/team-a/jobs/mine%3fwatch=1",
        "/ns/..%2f..%2fapi/jobs",
        "/ns/Team_A/jobs",
        "/ns/team-a/jobs/mine%00",
        "/ns/team-a/jobs/%2e%2e",
        "/static/..%2fapp.py",
        "/static/%2e%2e/settings.py",
    ],
)
def test_no_address_reaches_another_path(client: TestClient, api: ApiServer, path: str) -> None:
    before = len(api.asked)
    answer = client.get(path)
    assert answer.status_code == 404
    assert api.asked[before:] == []


@pytest.mark.parametrize("declared", [True, False])
def test_a_form_that_is_too_large_is_refused_before_it_is_read(
    client: TestClient, api: ApiServer, declared: bool
) -> None:
    def parts() -> object:
        yield b"csrf="
        for _ in range(BODY_BYTES // 65536 + 1):
            yield b"x" * 65536

    before = len(api.asked)
    body = b"x" * (BODY_BYTES + 1) if declared else parts()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = client.post("/ns/team-a/jobs/mine/do/suspend", content=body, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 413
    assert "too large" in answer.text
    assert api.asked[before:] == []
