"""Nobody sees or changes what the API server does not let them, on any route. The application names the routes, so
a new route is tested here without being named."""

from __future__ import annotations

import pytest
from finetune_ui.app import Page, private, public
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from tests.unit.ui.api_server import READ_ONLY, ApiServer, job, pod
from tests.unit.ui.conftest import Browser, csrf

SECRET = "nobody-of-a-sees-this"
VALUES = {"namespace": "team-b", "name": "theirs", "verb": "delete"}
NO_NAMESPACE = ("/", "/go")
"""Private routes that show the choice of a namespace alone."""


def path_of(route: Route) -> str:
    return route.url_path_for(route.name, **{name: VALUES[name] for name in route.param_convertors})


PRIVATE = [
    (method, path_of(route)) for route in private() for method in sorted(route.methods or ()) if method != "HEAD"
]


@pytest.fixture(autouse=True)
def of_b(api: ApiServer) -> None:
    theirs = job("theirs", "team-b", message=SECRET)
    theirs["spec"]["model"]["source"] = f"pvc://{SECRET}/model"
    api.put(theirs)
    api.put(job("mine", "team-a"))
    api.pods.append(pod(theirs))
    api.log.append(SECRET)


def ask(client: TestClient, method: str, path: str, form: str = "") -> tuple[int, str]:
    data = {"csrf": form, "uid": "uid-team-b-theirs"} if method == "POST" else None
    answer = client.request(method, path, data=data)
    return answer.status_code, answer.text


def test_every_route_of_the_application_is_known_to_be_public_or_private(page: Page) -> None:
    known = {route.path for route in (*public(), *private())}
    assert {route.path for route in page.routes if isinstance(route, Route | Mount)} == known
    assert [route.path for route in public()] == ["/healthz", "/login", "/login", "/logout", "/enter", "/static"]


@pytest.mark.parametrize(("method", "path"), PRIVATE)
def test_without_a_session_every_route_leads_to_the_log_in(
    browser: Browser, api: ApiServer, method: str, path: str
) -> None:
    client = browser("")
    answer = client.request(method, path, data={"csrf": csrf(client)} if method == "POST" else None)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")
    part = client.request(
        method, path, data={"csrf": csrf(client)} if method == "POST" else None, headers={"HX-Request": "true"}
    )
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/login")
    assert api.asked == []


@pytest.mark.parametrize(("method", "path"), [each for each in PRIVATE if each[1] not in NO_NAMESPACE])
def test_a_user_of_one_namespace_gets_nothing_of_another(
    browser: Browser, api: ApiServer, method: str, path: str
) -> None:
    client = browser("token-of-a")
    status, text = ask(client, method, path, csrf(client))
    if path.endswith("/compare"):  # names no job, so asks for none
        status, text = ask(client, method, f"{path}?job=theirs")
    assert status == 403
    assert SECRET not in text
    assert "team-b" in text
    assert "You may not" in text
    assert {token for token, _, _ in api.asked} == {"token-of-a"}
    assert ("team-b", "theirs") in api.jobs


def test_two_users_at_once_get_their_own(browser: Browser) -> None:
    """Clients are lent to threads: none may carry the token of another user."""
    of_a, of_b = browser("token-of-a"), browser("token-of-b")
    for _ in range(3):
        assert of_a.get("/ns/team-a/jobs").status_code == 200
        assert of_b.get("/ns/team-b/jobs").status_code == 200
        assert of_a.get("/ns/team-b/jobs").status_code == 403
        assert of_b.get("/ns/team-a/jobs").status_code == 403


def test_a_refusal_names_verb_resource_and_namespace(browser: Browser) -> None:
    assert "You may not list finetunejobs in namespace team-b" in browser("token-of-a").get("/ns/team-b/jobs").text


def test_who_only_reads_sees_grey_buttons_and_is_refused_all_the_same(browser: Browser, api: ApiServer) -> None:
    client = browser(READ_ONLY)
    text = client.get("/ns/team-a/jobs/mine").text
    assert "Suspend, Try again, Stop and keep: You may not patch finetunejobs in namespace team-a." in text
    assert "Delete: You may not delete finetunejobs in namespace team-a." in text
    assert "You may not create pods in namespace team-a." in text
    data = {"csrf": csrf(client), "uid": "uid-team-a-mine"}
    assert client.post("/ns/team-a/jobs/mine/do/suspend", data=data).status_code == 403
    assert "suspend" not in api.jobs["team-a", "mine"]["spec"]


def test_a_token_that_expires_ends_the_session(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    client = browser("token-of-both")
    monkeypatch.delitem(__import__("tests.unit.ui.api_server", fromlist=["RIGHTS"]).RIGHTS, "token-of-both")
    answer = client.get("/ns/team-a/jobs")
    assert answer.headers["location"] == "/login?next=/ns/team-a/jobs"
    assert 'session=""' in answer.headers["set-cookie"]
