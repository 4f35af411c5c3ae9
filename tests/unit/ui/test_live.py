"""Pages stay live by streams: what is pushed, that pages share a watch, and that it ends with the last of them."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from finetune_api.curves import pack
from finetune_cli.cluster import refusals
from finetune_ui.app import Page

from tests.kube import until
from tests.unit.ui.api_server import TIME, ApiServer, job, pod
from tests.unit.ui.conftest import Browser

Event = tuple[str, str]


class Stream:
    """A page that listens."""

    def __init__(self, address: str, cookie: str, path: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        self._connection.request("GET", path, headers={"Cookie": cookie, "Accept": "text/event-stream"})
        self._response = self._connection.getresponse()
        self.status = self._response.status

    def next(self) -> Event:
        """The next event: its name, and its data. An empty name at the end."""
        name, data = "", list[str]()
        while raw := self._response.readline().decode():
            key, _, value = raw.rstrip("\n").partition(": ")
            if not key and name:  # else it ends a comment
                break
            name = value if key == "event" else name
            data += [value] if key == "data" else []
        return name, "\n".join(data)

    def close(self) -> None:
        self._response.close()
        self._connection.close()


Opened = Callable[..., Stream]


@pytest.fixture
def stream(address: str, browser: Browser) -> Iterator[Opened]:
    opened: list[Stream] = []

    def open_(path: str, token: str = "token-of-a") -> Stream:
        cookies = browser(token).cookies
        made = Stream(address, "; ".join(f"{name}={value}" for name, value in cookies.items()), path)
        opened.append(made)
        return made

    yield open_
    for each in opened:
        each.close()


def seen(browser: Browser) -> str:
    """The stream that the list of jobs names."""
    text = browser().get("/ns/team-a/jobs").text
    return text.partition('sse-connect="')[2].partition('"')[0].replace("&amp;", "&")


def progressing(percent: int) -> dict[str, Any]:
    return {"attempt": 1, "summary": f"{percent}/100 ({percent}%)", "percent": percent, "loss": "1.5"}


def test_a_change_is_a_row_and_a_new_job_is_a_new_list(api: ApiServer, browser: Browser, stream: Opened) -> None:
    api.put(job("one"))
    api.put(job("two"))
    page = stream(seen(browser))
    assert api.opened.wait(10)
    api.put(job("one", progress=progressing(40)))
    name, text = page.next()
    assert name == "rows"
    assert 'id="job-uid-team-a-one" hx-swap-oob="true"' in text
    assert "40/100 (40%)" in text
    assert "uid-team-a-two" not in text  # what has not changed, and what the page showed already, is not sent
    api.put(job("three"))
    name, text = page.next()
    assert 'tbody id="rows" hx-swap-oob="true"' in text
    assert "3 of 3 jobs" in text
    api.remove("team-a", "two")
    assert "2 of 2 jobs" in page.next()[1]


def test_what_changed_before_the_stream_opened_is_sent_first(api: ApiServer, browser: Browser, stream: Opened) -> None:
    api.put(job("one"))
    path = seen(browser)
    api.put(job("one", progress=progressing(70)))
    assert "70/100 (70%)" in stream(path).next()[1]


def test_filters_of_the_address_hold_for_what_is_pushed(api: ApiServer, stream: Opened) -> None:
    api.put(job("one"))
    page = stream("/ns/team-a/live?phase=Failed")
    assert "0 of 1 jobs" in page.next()[1]
    api.put(job("one", phase="Failed", reason="Diverged"))
    assert "Diverged" in page.next()[1]


def test_all_pages_of_a_user_share_a_watch_which_ends_with_the_last(api: ApiServer, page: Page, stream: Opened) -> None:
    api.put(job("one"))
    pages = [stream("/ns/team-a/live"), stream("/ns/team-a/live"), stream("/ns/team-a/jobs/one/live")]
    for each in pages:
        each.next()
    assert api.opened.wait(10)
    assert len(api.watches) == 1
    assert len(page.state.ui.hub.watches) == 1
    for each in pages[:-1]:
        each.close()
    api.put(job("one", progress=progressing(10)))
    assert "10/100" in pages[-1].next()[1]
    assert len(api.watches) == 1
    pages[-1].close()
    assert api.closed.wait(20)
    until("it is so", lambda: not page.state.ui.hub.watches)
    assert api.watches == []


def test_users_share_no_watch(api: ApiServer, stream: Opened) -> None:
    api.put(job("one"))
    for token in ("token-of-a", "token-of-both"):
        stream("/ns/team-a/live", token).next()
    until("it is so", lambda: len(api.watches) == 2)
    assert {token for token, _, path in api.asked if "watch=true" in path} == {"token-of-a", "token-of-both"}


def test_a_watch_of_another_user_opens_nothing(api: ApiServer, stream: Opened) -> None:
    api.put(job("theirs", "team-b"))
    stream("/ns/team-b/live", "token-of-b").next()
    assert stream("/ns/team-b/live", "token-of-a").status == 403
    assert stream("/ns/team-b/jobs/theirs/live", "token-of-a").status == 403
    assert stream("/ns/team-b/compare/live?job=theirs&job=other", "token-of-a").status == 403


def test_a_page_of_a_job_follows_its_phase_and_its_end(api: ApiServer, stream: Opened) -> None:
    api.put(job("one"))
    page = stream("/ns/team-a/jobs/one/live")
    assert "Running" in page.next()[1]
    end = {"type": "Succeeded", "status": "True", "reason": "Completed", "message": "", "lastTransitionTime": TIME}
    api.put(job("one", phase="Succeeded", reason="Completed", conditions=[end]))
    name, text = page.next()
    assert name == "rows"
    assert '<div hx-swap-oob="innerHTML:#say">Succeeded</div>' in text
    assert "one has succeeded" in text
    assert page.next()[0] == "timeline"
    api.remove("team-a", "one")
    assert "Somebody has deleted this job" in page.next()[1]


def test_a_comparison_follows_its_jobs_and_shares_the_watch(
    api: ApiServer, page: Page, browser: Browser, stream: Opened
) -> None:
    """New points are in the curve, new results and settings in the tables. A job that is deleted stays."""
    for name in ("one", "two", "three"):
        api.put(job(name, progress=progressing(10)))
    address = "/ns/team-a/compare?job=one&job=two"
    linked = browser().get(address).text.partition('sse-connect="')[2].partition('"')[0].replace("&amp;", "&")
    pages = [stream(linked), stream("/ns/team-a/jobs/one/live")]
    for each in pages:
        each.next()
    assert api.opened.wait(10)
    assert len(api.watches) == 1
    api.put(job("three", progress=progressing(90)))
    curves = pack({"loss": [(1, 2.5), (2, 0.5)]})
    api.put(job("two", progress={**progressing(60), "curves": curves}))
    name, text = pages[0].next()
    assert name == "rows"
    assert '<th scope="row">progress</th><td>10/100 (10%)</td><td>60/100 (60%)</td>' in text
    assert "two: 2.5 at step 1, 0.5 at step 2" in text
    assert "<option selected>loss</option>" in text
    assert "All settings are equal" in text
    assert "90/100" not in text, "another job of the namespace is no part of it"
    changed = job("two", progress={**progressing(60), "curves": curves})
    changed["spec"]["training"] = {"epochs": 7}
    api.put(changed)
    text = pages[0].next()[1]
    assert '<th scope="row">training.epochs</th><td>1</td><td>7</td>' in text
    assert 'id="metrics"' not in text, "the choice of a curve stays as it is while somebody uses it"
    api.remove("team-a", "two")
    text = pages[0].next()[1]
    assert "Deleted in the meantime: two" in text
    assert "60/100" in text
    for each in pages:
        each.close()
    assert api.closed.wait(20)
    until("the watch ends with the last page", lambda: not page.state.ui.hub.watches)
    assert api.watches == []


def lines(page: Stream) -> str:
    """Everything until the log has ended."""
    found = ""
    while (event := page.next())[0] == "lines":
        found += event[1]
    assert event[0] == "ended"
    return found


def test_a_log_is_sent_line_by_line_and_its_end_is_told(api: ApiServer, stream: Opened) -> None:
    one = job("one")
    api.put(one)
    api.pods += [pod(one, 0), pod(one, 1)]
    api.log += ["first <script>", "second"]
    page = stream(f"/ns/team-a/jobs/one/logs/live?pod={api.pods[0]['metadata']['name']}")
    assert lines(page).replace("</span><span>", "") == "<span>first &lt;script&gt;\nsecond\n</span>"
    found = lines(stream("/ns/team-a/jobs/one/logs/live?pod=all"))
    assert found.count("train-1/0 | second") == found.count("train-1/1 | second") == 1


def end_watches(api: ApiServer) -> None:
    """Each watch that is open has to begin again, with a list."""
    for queue in api.watches:
        api.loop.call_soon_threadsafe(queue.put_nowait, {"type": "ERROR", "object": job("x")})


def test_a_page_stays_live_when_the_api_server_starts_again(
    api: ApiServer, stream: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses everybody for a moment."""
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", 0.01)
    api.put(job("one"))
    page = stream("/ns/team-a/live")
    page.next()
    assert api.opened.wait(10)
    api.refusals = 5
    end_watches(api)
    until("it is so", lambda: not api.refusals)
    api.put(job("one", progress=progressing(40)))
    assert "40/100" in page.next()[1]


def test_no_watch_outlives_rights_that_were_taken_away(
    api: ApiServer, page: Page, stream: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next list is refused, the stream ends, and the browser that tries again is refused, too."""
    from tests.unit.ui import api_server

    api.put(job("one"))
    opened = stream("/ns/team-a/live", "token-of-both")
    opened.next()
    assert api.opened.wait(10)
    monkeypatch.setitem(api_server.RIGHTS, "token-of-both", {"team-b"})
    monkeypatch.setattr(refusals, "DOUBT_SECONDS", 0.1)
    end_watches(api)
    assert opened.next() == ("", "")
    assert stream("/ns/team-a/live", "token-of-both").status == 403
    until("it is so", lambda: not page.state.ui.hub.watches)
