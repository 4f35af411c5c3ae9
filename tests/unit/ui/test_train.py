"""The form's page: each button does what it says, and only one of them creates anything."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from tests.kube import until
from tests.unit.ui.api_server import READ_ONLY, ApiServer, job
from tests.unit.ui.conftest import Browser
from tests.unit.ui.form.browser import page as parsed

TRAIN = "/ns/team-a/train"


def filled(client: TestClient, address: str = TRAIN, **typed: str) -> list[tuple[str, str]]:
    """What a browser posts after somebody has typed into some controls. The names have __ for a point."""
    changed = {name.replace("__", "."): text for name, text in typed.items()}
    text = client.get(address).text
    form = text[text.index('<form id="train-form"') : text.index('<form id="load-form"')]
    return [(name, changed.get(name, value)) for name, value in parsed(form).posted]


def press(client: TestClient, button: str, posted: list[tuple[str, str]]) -> tuple[int, str, str]:
    """Status, text, and where it leads."""
    sent = dict([*posted, ("do", button)])
    answer = client.post(TRAIN, data=sent)
    return answer.status_code, answer.text, answer.headers.get("location", "")


def test_a_job_is_shown_checked_and_created(browser: Browser, api: ApiServer) -> None:
    client = browser()
    posted = filled(client, metadata__name="mine", spec__model__source="pvc://models/base")
    status, text, _ = press(client, "preview", posted)
    assert (status, "source: pvc://models/base" in text) == (200, True)
    assert api.changes == []
    status, text, _ = press(client, "check", posted)
    assert "It is not created yet" in text
    assert ("team-a", "mine") not in api.jobs
    status, _, place = press(client, "create", posted)
    assert (status, place) == (303, "/ns/team-a/jobs/mine")
    made = api.jobs["team-a", "mine"]
    assert (made["spec"]["stage"], made["spec"]["model"]) == ("sft", {"source": "pvc://models/base"})


def test_a_job_goes_to_the_namespace_of_the_page_whatever_the_form_says(browser: Browser, api: ApiServer) -> None:
    client = browser("token-of-both")
    posted = [*filled(client, metadata__name="mine"), ("metadata.namespace", "team-b")]
    assert press(client, "create", posted)[0] == 303
    assert list(api.jobs) == [("team-a", "mine")]


def test_a_clone_has_the_settings_and_not_the_name(browser: Browser, api: ApiServer) -> None:
    api.put(job("first"))
    client = browser()
    posted = dict(filled(client, f"{TRAIN}?clone=first"))
    assert (posted["metadata.name"], posted["spec.training.epochs"]) == ("", "1")
    assert client.get(f"{TRAIN}?clone=../first").status_code == 404


def test_yaml_is_loaded_and_what_is_wrong_with_it_is_said(browser: Browser, api: ApiServer) -> None:
    client = browser()
    csrf = dict(filled(client))["csrf"]

    def loaded(text: str, how: str = "load") -> str:
        return client.post(TRAIN, data={"csrf": csrf, "text": text, "do": how}).text

    assert 'value="pvc://models/base"' in loaded(yaml.safe_dump(job("first")))
    assert "This is not YAML" in loaded("{")
    assert "<b>" not in loaded("kind: <b>")
    assert 'value="hf://org/model"' in loaded("{stage: sft, model_name_or_path: org/model, dataset: x}", "import")
    assert api.changes == []


def test_a_row_is_added_without_asking_the_server(browser: Browser, api: ApiServer) -> None:
    client = browser()
    _, text, _ = press(client, "add:spec.datasets", filled(client))
    assert "spec.datasets[1].source" in text
    assert api.changes == []


def test_who_may_not_create_is_told_so(browser: Browser, api: ApiServer) -> None:
    client = browser(READ_ONLY)
    status, text, _ = press(client, "create", filled(client, metadata__name="mine"))
    assert (status, "You may not create" in text) == (403, True)


ROWS = [
    {"method": method, "gpus": gpus, "parallelism": "ddp" if gpus == 1 else "fsdp", "bytes": size * 2**30 // gpus}
    for method, size in (("lora", 20), ("full", 120))
    for gpus in (1, 2)
]


def estimate_of(text: str) -> str:
    """The address that the page asks again."""
    found = re.search(r'hx-get="(/ns/team-a/estimate/[0-9a-f]{64})"', text)
    assert found is not None
    return found[1]


def test_check_offers_an_estimate_which_a_pod_makes_for_who_asked(
    browser: Browser, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, list[int], str]] = []
    may_end = threading.Event()

    def in_cluster(client: Any, of: Any, every: Any, gpus: list[int], image: str, timeout: float) -> Any:
        token = client._credentials.headers()["Authorization"]
        asked.append((token, of["spec"]["model"]["source"], list(gpus), image))
        assert may_end.wait(20)
        return ROWS

    monkeypatch.setattr("finetune_cli.workspace.estimate.in_cluster", in_cluster)
    api.put(job("other", resolved={"image": "registry/trainer:1"}))
    client = browser()
    posted = filled(client, metadata__name="mine", spec__model__source="pvc://models/base")
    _, text, _ = press(client, "check", posted)
    assert "Estimate the memory" in text
    assert asked == [], "a check runs no pod"
    _, text, _ = press(client, "estimate", posted)
    where = estimate_of(text)
    assert "A pod estimates the memory" in client.get(where).text
    may_end.set()
    until("the estimate is here", lambda: "about 20.0 GiB on each GPU" in client.get(where).text)
    assert re.findall(r'<th scope="row">(\w+)</th><td class="number">([\d.]+)</td>', client.get(where).text) == [
        ("lora", "20.0"),
        ("full", "120.0"),
    ]
    assert "20.0" in press(client, "check", posted)[1], "a later check of the same job has it"
    assert "20.0" not in browser("token-of-both").get(where).text
    assert asked == [("Bearer token-of-a", "pvc://models/base", [1, 2, 4, 8], "registry/trainer:1")]
    assert list(api.jobs) == [("team-a", "other")]


def test_an_estimate_that_fails_says_why_and_what_to_do(browser: Browser, api: ApiServer) -> None:
    """Nobody has told the page which image the cluster uses. What was typed stays."""
    client = browser()
    posted = filled(client, metadata__name="mine", spec__model__source="pvc://models/base")
    _, text, _ = press(client, "estimate", posted)
    assert 'value="pvc://models/base"' in text
    until("it has failed", lambda: "The trainer image is not known" in press(client, "check", posted)[1])
    assert "The job can be created all the same" in press(client, "check", posted)[1]


def test_a_check_knows_the_estimate_of_a_job_that_was_prepared_with_these_settings(
    browser: Browser, api: ApiServer
) -> None:
    client = browser()
    posted = filled(client, metadata__name="first", spec__model__source="pvc://models/base")
    press(client, "create", posted)
    made = api.jobs["team-a", "first"]
    api.put({**made, "status": {"phase": "Running", "prepared": {"gpuMemoryBytes": 12 * 2**30}}})

    def checked(**typed: str) -> bool:
        again = filled(client, metadata__name="second", **{"spec__model__source": "pvc://models/base", **typed})
        return "Job first has the same model, data and settings" in press(client, "check", again)[1]

    assert checked(spec__training__learningRate="0.5")
    assert not checked(spec__training__cutoffLength="4096")
    assert not checked(spec__model__source="pvc://models/other")


def test_who_may_not_create_pods_is_told_so_beside_the_estimate(
    browser: Browser, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_ui.rights.allowed", lambda *asked: "pods" not in asked)
    client = browser()
    _, text, _ = press(client, "check", filled(client, metadata__name="mine"))
    assert "You may not create pods in namespace team-a." in text
