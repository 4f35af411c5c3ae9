"""What pages show and do: the list, a job, its actions, its report, comparisons."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from finetune_api.curves import pack
from finetune_cli.problem import Problem
from finetune_ui.app import Page, create
from finetune_ui.settings import Settings
from starlette.testclient import TestClient

from tests.kube import until
from tests.unit.ui.api_server import ApiServer, job, pod
from tests.unit.ui.conftest import Browser, csrf
from tests.unit.ui.form.browser import page as parsed

LIST = "/ns/team-a/jobs"


@pytest.fixture
def client(browser: Browser) -> TestClient:
    return browser()


def names(client: TestClient, query: str = "") -> list[str]:
    return re.findall(r'id="open-[^"]+" href="/ns/team-a/jobs/([^"]+)"', client.get(LIST + query).text)


def progress(loss: str, percent: int, **more: Any) -> dict[str, Any]:
    return {"attempt": 1, "kind": "train", "summary": f"{percent}/100", "percent": percent, "loss": loss, **more}


def test_the_list_is_filtered_sorted_and_searched_by_its_address(client: TestClient, api: ApiServer) -> None:
    api.put(job("apple", progress=progress("9.5", 10)))
    api.put(job("berry", phase="Failed", reason="Diverged", progress=progress("10.1", 90)))
    api.put(job("cherry", phase="Queued", reason="WaitingForQuota", message="It waits (place 7)"))
    api.jobs["team-a", "cherry"]["spec"]["stage"] = "dpo"
    for age, name in enumerate(("cherry", "apple", "berry")):
        api.jobs["team-a", name]["metadata"]["creationTimestamp"] = f"2026-01-0{age + 1}T00:00:00Z"
    assert names(client) == ["berry", "apple", "cherry"]
    assert names(client, "?sort=name") == ["apple", "berry", "cherry"]
    assert names(client, "?sort=loss") == ["cherry", "apple", "berry"]
    assert names(client, "?sort=-progress") == ["berry", "apple", "cherry"]
    assert names(client, "?phase=Failed") == ["berry"]
    assert names(client, "?stage=dpo") == ["cherry"]
    assert names(client, "?q=DIVERGED") == ["berry"]
    assert names(client, "?q=models/base&phase=Running") == ["apple"]
    assert names(client, "?sort=nonsense&page=-1&phase=nonsense") == ["berry", "apple", "cherry"]
    text = client.get(f"{LIST}?q=err&sort=name").text
    assert 'value="err"' in text
    assert 'aria-sort="ascending"' in text
    assert "2 of 3 jobs" in text
    assert '<td class="number">7</td>' in client.get(LIST).text


def test_500_jobs_are_shown_page_by_page(client: TestClient, api: ApiServer) -> None:
    for number in range(500):
        api.put(job(f"job-{number:03}"))
    assert names(client, "?sort=name") == [f"job-{number:03}" for number in range(100)]
    assert names(client, "?sort=name&page=5") == [f"job-{number:03}" for number in range(400, 500)]
    assert names(client, "?sort=name&page=77") == names(client, "?sort=name&page=5")
    assert 'href="/ns/team-a/jobs?sort=name&amp;page=3"' in client.get(f"{LIST}?sort=name&page=2").text


def test_a_job_shows_its_curves_its_state_and_its_artifact(client: TestClient, api: ApiServer) -> None:
    curves = pack({"loss": [(1, 3.0), (2, 2.0), (3, 1.0)], "evalLoss": [(2, 2.5)], "rewardsMargins": [(1, 0.5)]})
    artifact = {"uri": "pvc://w/jobs/one/artifact", "kind": "adapter", "digest": "sha256:1", "sizeBytes": 2048}
    api.put(job("one", phase="Succeeded", progress=progress("1.0", 100, curves=curves), artifact=artifact))
    api.events.append({"reason": "Created", "message": "made it", "metadata": {"creationTimestamp": "2026-01-31"}})
    text = client.get(f"{LIST}/one").text
    for words in (
        "loss: 3 at step 1, 1 at step 3, lowest 1, highest 3, 3 points",
        "evalLoss: 2.5 at step 2",
        "rewardsMargins",
        "made it",
        "one has succeeded",
        "kubectl finetune fetch one -n team-a -o one",
        "PeftModel.from_pretrained(base, &#34;one&#34;)",
        "2.0 KiB",
        "claimName: workspace",
    ):
        assert words in text
    assert text.count('"loss (raw)"'.replace('"', "&#34;")) == 1


def test_a_job_without_anything_is_shown(client: TestClient, api: ApiServer) -> None:
    bare = job("new")
    del bare["status"]
    api.put(bare)
    assert "Pending" in client.get(f"{LIST}/new").text
    assert names(client) == ["new"]


@pytest.mark.parametrize(
    ("verb", "phase", "spec", "change"),
    [
        ("suspend", "Running", {}, {"suspend": True}),
        ("resume", "Suspended", {"suspend": True}, {"suspend": False}),
        ("retry", "Failed", {}, {"retry": 1}),
        ("stop", "Running", {}, {"stop": "keep"}),
    ],
)
def test_a_button_changes_the_spec_as_the_command_line_does(
    client: TestClient, api: ApiServer, verb: str, phase: str, spec: dict[str, Any], change: dict[str, Any]
) -> None:
    made = job("one", phase=phase, reason="")
    made["spec"] |= spec
    api.put(made)
    data = {"csrf": csrf(client), "uid": "uid-team-a-one"}
    answer = client.post(f"{LIST}/one/do/{verb}", data=data)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{LIST}/one")
    assert api.changes == [{"metadata": {"uid": "uid-team-a-one"}, "spec": change}]
    api.put(made)
    part = client.post(f"{LIST}/one/do/{verb}", data=data, headers={"HX-Request": "true"})
    assert "<html" not in part.text
    assert "one" in part.text


def test_what_cannot_be_taken_back_is_asked_first(client: TestClient, api: ApiServer) -> None:
    api.put(job("one"))
    text = client.get(f"{LIST}/one").text
    assert re.search(r'<form method="get" action="[^"]+/confirm/delete">', text)
    assert "/do/delete" not in text
    asked = client.get(f"{LIST}/one/confirm/delete").text
    assert "Delete one?" in asked
    data = {"csrf": csrf(client, f"{LIST}/one/confirm/delete"), "uid": "uid-team-a-one"}
    answer = client.post(f"{LIST}/one/do/delete", data=data)
    assert answer.headers["location"] == LIST
    assert api.changes == [{"propagationPolicy": "Background", "preconditions": {"uid": "uid-team-a-one"}}]
    assert api.jobs == {}
    assert client.get(f"{LIST}/one/confirm/suspend").status_code == 404


def test_another_job_of_the_same_name_is_not_touched(client: TestClient, api: ApiServer) -> None:
    api.put(job("one"))
    for verb in ("suspend", "delete"):
        answer = client.post(f"{LIST}/one/do/{verb}", data={"csrf": csrf(client), "uid": "uid-of-an-earlier-job"})
        assert answer.status_code == 409
        assert "Another job has this name" in answer.text
    assert api.changes == []


def test_buttons_are_grey_when_they_make_no_sense(client: TestClient, api: ApiServer) -> None:
    api.put(job("one", phase="Failed", reason="Diverged"))
    text = client.get(f"{LIST}/one").text
    grey = dict(re.findall(r'<button id="button-(\w+)"( disabled)?', text))
    assert grey == {"suspend": " disabled", "retry": "", "stop": " disabled", "delete": ""}
    assert "Suspend, Stop and keep: Not possible while the job is Failed." in text


def test_a_grey_button_names_the_text_that_says_why(client: TestClient, api: ApiServer) -> None:
    """A pointer is not needed to read it, as it is for a title."""
    api.put(job("one", phase="Succeeded", reason="Completed"))
    there = parsed(client.get(f"{LIST}/one").text)
    grey = [given for tag, given in there.tags if tag == "button" and "disabled" in given]
    assert {given["id"] for given in grey} == {"button-suspend", "button-retry", "button-stop"}
    assert {tag for tag, given in there.tags for each in grey if given.get("id") == each["aria-describedby"]} == {"p"}


def shows(client: TestClient, where: str, words: str) -> bool:
    return words in client.get(where).text


def test_the_report_is_fetched_on_demand_and_shown_to_who_asked(
    client: TestClient, browser: Browser, page: Page, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def data_report(client: Any, of: Any, form: str, queue: Any, timeout: float) -> str:
        asked.append(client._credentials.headers()["Authorization"])
        if of["metadata"]["name"] == "broken":
            raise Problem("It has no report yet.")
        return "48 rows, the first: Hello"

    monkeypatch.setattr("finetune_ui.pages.report.data_report", data_report)
    for name, words in (("one", "48 rows, the first: Hello"), ("broken", "It has no report yet.")):
        api.put(job(name))
        where = f"{LIST}/{name}/report"
        assert asked == [] or name == "broken"
        assert client.post(where, data={"csrf": csrf(client)}).headers["location"] == f"{LIST}/{name}#report"
        until("the report is here", partial(shows, client, where, words))
        assert words in client.get(f"{LIST}/{name}").text
        assert words not in browser("token-of-both").get(where).text
    assert asked == ["Bearer token-of-a"] * 2


def test_a_log_offers_the_pods_of_the_job_the_newest_first(client: TestClient, api: ApiServer) -> None:
    one = job("one")
    api.put(one)
    assert "No pod of this job" in client.get(f"{LIST}/one/logs").text
    api.pods += [pod(one, 0), pod(one, 1)]
    text = client.get(f"{LIST}/one/logs").text
    assert re.findall(r"train-1/\d", text) == ["train-1/1", "train-1/0"]
    assert 'sse-connect="/ns/team-a/jobs/one/logs/live?pod=one-uid-t-1-1-x"' in text
    assert "live?pod=all" in client.get(f"{LIST}/one/logs?pod=all").text


def test_jobs_are_compared_by_curves_results_and_settings(client: TestClient, api: ApiServer) -> None:
    for number, name in enumerate(("one", "two")):
        api.put(job(name, progress=progress(f"1.{number}", 50, curves=pack({"loss": [(1, 2.0), (3 + number, 1.0)]}))))
        api.jobs["team-a", name]["spec"]["training"] = {"epochs": 1 + number}
    text = client.get("/ns/team-a/compare?job=one&job=two&job=two").text
    assert "<td>1.0</td><td>1.1</td>" in text
    assert '<th scope="row">training.epochs</th><td>1</td><td>2</td>' in text
    assert "model.source" not in text
    assert "[[1, 3, 4], [2.0, 1.0, null], [2.0, null, 1.0]]" in text
    many = "&".join(f"job=j{number}" for number in range(9))
    assert "At most 8 jobs" in client.get(f"/ns/team-a/compare?{many}").text
    assert "two jobs or more" in client.get("/ns/team-a/compare?job=one").text


def test_who_may_not_list_namespaces_types_theirs(client: TestClient) -> None:
    assert "You may not list namespaces" in client.get("/").text
    assert client.get("/go?namespace=team-a").headers["location"] == LIST
    assert client.get("/go?namespace=../../evil").headers["location"] == "/?choose=1"


def test_an_api_server_that_is_gone_is_named_as_the_cause(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_cli.cluster.client.TRIES", 1)
    nobody = replace(settings.server, server="http://127.0.0.1:1")
    client = TestClient(create(replace(settings, server=nobody, token_header="Authorization")))
    answer = client.get(LIST, headers={"Authorization": "Bearer token-of-a"})
    assert answer.status_code == 502
    assert "http://127.0.0.1:1" in answer.text
    assert "does not answer" in answer.text
