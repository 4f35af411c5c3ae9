"""How somebody logs in, what the browser keeps, and what is kept nowhere."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from cryptography.fernet import Fernet
from finetune_cli.problem import Problem
from finetune_ui.app import create
from finetune_ui.session import Sessions
from finetune_ui.settings import Settings, of_environment
from starlette.testclient import TestClient

from tests.unit.ui.api_server import ApiServer, job
from tests.unit.ui.conftest import ADDRESS, Browser, csrf, log_in


def visit(settings: Settings, address: str = ADDRESS) -> TestClient:
    return TestClient(create(settings), base_url=address, follow_redirects=False)


def test_the_cookie_is_for_this_host_and_no_script(browser: Browser) -> None:
    client = browser("")
    cookie = log_in(client, "token-of-a").headers["set-cookie"]
    name, *flags = [part.strip().lower() for part in cookie.split(";")]
    assert name.startswith("__host-finetune-session=")
    assert {"httponly", "secure", "samesite=strict", "path=/"} <= set(flags)
    assert not [flag for flag in flags if flag.startswith("domain")]


def test_the_token_is_in_no_page_no_address_no_cookie_and_no_log(
    browser: Browser, settings: Settings, api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api.put(job("mine"))
    client = browser("")
    answers = [log_in(client, "token-of-a", next="/ns/team-a/jobs")]
    paths = ("/", "/ns/team-a/jobs", "/ns/team-a/jobs/mine", "/ns/team-a/jobs/none", "/ns/team-b/jobs", "/nothing")
    answers += [client.get(path) for path in paths]
    for answer in answers:
        assert "token-of-a" not in answer.text
        assert "token-of-a" not in str(answer.headers)
    assert "token-of-a" not in caplog.text
    assert "token-of-a" not in repr(Sessions(settings).of_token("token-of-a"))


def test_a_wrong_token_is_refused_at_once(browser: Browser) -> None:
    client = browser("")
    answer = log_in(client, "unknown")
    assert answer.status_code == 401
    assert "The API server does not know this token" in answer.text
    assert "unknown" not in answer.text
    assert client.get("/").status_code == 303


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ümlaut"])
def test_what_is_no_token_never_reaches_a_header(browser: Browser, api: ApiServer, token: str) -> None:
    client = browser("")
    assert log_in(client, token).status_code == 400
    assert api.asked == []


def test_a_token_that_no_cookie_can_hold_is_refused_with_advice(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    import secrets

    from tests.unit.ui import api_server

    long = secrets.token_urlsafe(6000)
    monkeypatch.setitem(api_server.RIGHTS, long, {"team-a"})
    answer = log_in(browser(""), long)
    assert answer.status_code == 400
    assert "too long" in answer.text


def test_a_cookie_survives_a_restart_only_with_a_key_that_is_kept(settings: Settings) -> None:
    kept = replace(settings, cookie_key=Fernet.generate_key())
    for before, after, status in ((kept, kept, 200), (settings, settings, 303)):
        first, second = visit(before), visit(after)
        log_in(first, "token-of-a")
        second.cookies = first.cookies
        assert second.get("/ns/team-a/jobs").status_code == status


def test_a_forged_cookie_is_nobody(browser: Browser) -> None:
    client = browser("")
    client.cookies.set("__Host-finetune-session", Fernet(Fernet.generate_key()).encrypt(b"{}").decode())
    assert client.get("/ns/team-a/jobs").status_code == 303


def test_a_key_that_is_no_key_is_named(settings: Settings) -> None:
    with pytest.raises(Problem, match="no Fernet key"):
        create(replace(settings, cookie_key=b"short"))


def test_log_out_removes_the_cookie(browser: Browser) -> None:
    client = browser()
    assert client.post("/logout", data={"csrf": csrf(client)}).status_code == 303
    assert client.get("/ns/team-a/jobs").status_code == 303


def test_after_the_log_in_the_page_that_was_asked_for_is_shown(browser: Browser) -> None:
    client = browser("")
    assert client.get("/ns/team-a/jobs?phase=Failed").headers["location"] == (
        "/login?next=/ns/team-a/jobs%3Fphase%3DFailed"
    )
    target = "/ns/team-a/jobs?phase=Failed"
    assert log_in(client, "token-of-a", next=target).headers["location"] == target


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_the_log_in_leads_to_no_other_site(browser: Browser, target: str) -> None:
    assert log_in(browser(""), "token-of-a", next=target).headers["location"] == "/"


def test_a_link_from_another_site_is_loaded_again_with_the_cookie(browser: Browser) -> None:
    """Browsers leave a strict cookie out at first. Without another try, every shared link would end at the log-in."""
    answer = browser("").get("/ns/team-a/jobs/mine", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200
    assert 'http-equiv="refresh"' in answer.text


def test_the_header_of_a_proxy_logs_in(settings: Settings, api: ApiServer) -> None:
    client = visit(replace(settings, token_header="Authorization"))
    assert client.get("/ns/team-a/jobs", headers={"Authorization": "Bearer token-of-a"}).status_code == 200
    assert {token for token, _, _ in api.asked} == {"token-of-a"}
    assert client.get("/ns/team-a/jobs").status_code == 303
    assert "proxy" in client.get("/login").text


def test_a_laptops_address_works_once_and_leaves_the_address(settings: Settings, api: ApiServer) -> None:
    server = replace(settings.server, user={"token": "token-of-a"}, namespace="team-a")
    laptop = replace(settings, server=server, secure=False, laptop=True, hosts=("127.0.0.1", "localhost"), port=4711)
    page = create(laptop)
    key = page.state.ui.sessions.one_time_key()
    client, thief = (TestClient(page, base_url="http://127.0.0.1:4711", follow_redirects=False) for _ in range(2))
    assert client.get("/enter?key=wrong").status_code == 403
    entered = client.get(f"/enter?key={key}")
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    assert entered.headers["set-cookie"].startswith("finetune-4711-session=")
    assert client.get("/").headers["location"] == "/ns/team-a/jobs"
    assert client.get("/ns/team-a/jobs").status_code == 200
    assert {token for token, _, _ in api.asked} == {"token-of-a"}
    assert thief.get(f"/enter?key={key}").status_code == 403
    assert thief.get("/ns/team-a/jobs").status_code == 303


def test_a_laptop_answers_under_its_own_names_only(settings: Settings) -> None:
    """A site whose name is changed to 127.0.0.1 later would otherwise reach the page with the user's cookie."""
    laptop = replace(settings, secure=False, laptop=True, hosts=("127.0.0.1", "localhost"))
    assert visit(laptop, "http://evil.example").get("/login").status_code == 400
    assert visit(laptop, "http://localhost:80").get("/login").status_code == 200


def test_a_pod_has_the_server_but_no_token() -> None:
    found = of_environment({"KUBERNETES_SERVICE_HOST": "fd00::1", "FINETUNE_UI_NAMESPACES": "team-a,team-b"})
    assert found.server.server == "https://[fd00::1]:443"
    assert not found.server.user
    assert found.namespaces == ("team-a", "team-b")
    with pytest.raises(Problem, match="kubectl finetune ui"):
        of_environment({})
