"""The form's page: each button does what it says, and only one of them creates anything."""

from __future__ import annotations

import yaml
from starlette.testclient import TestClient

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
