"""How fast and how dear the web page is, on a played cluster: the page's own share, without that of an API server.

``python -m tests.bench.page [--changes N] [--jobs N] [--viewers N] [--minutes M]`` starts the page as its image does,
and an API server that is played in this process. It prints:

- the seconds from a change of a job's status until a browser has drawn it, on the job's page and in the list, p50 and
  p95. The changes come at irregular times, because the page shows what comes together at once;
- the seconds of the list with many jobs, from the request to the last byte, and how many of them are the played API
  server's, which is asked for the same list;
- the memory of the page's process while viewers follow the list and a job, which change all the time, and after they
  have left.

The load of the machine is printed, because the first two are wall-clock times.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.e2e.browser import Server, Visitor, chromium, in_pod, visitor
from tests.e2e.played_cluster import NAMESPACE, TOKEN, progress
from tests.kube import until
from tests.unit.ui.api_server import JOBS, ApiServer, Object, job, served

STEPS = 1000
LISTS = 20
LOOK_SECONDS = 15.0
SEEN = """() => {
  window.seen = {};
  const note = () => requestAnimationFrame(() => {
    for (const found of document.querySelectorAll(".number")) {
      const step = found.textContent.split("/")[0];
      window.seen[step] = window.seen[step] ?? Date.now() / 1000;
    }
  });
  new MutationObserver(note).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""
"""Notes when a step was first drawn, by the clock that Python's time has, too."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.page")
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=2)
    given = parser.parse_args(arguments)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores", flush=True)
    with served() as api, tempfile.TemporaryDirectory() as folder:
        api.put(running("watched", 0))
        with in_pod(Server(api.url, TOKEN), Path(folder)) as (address, process):
            cookie = until_drawn(api, address, given.changes)
            lists(api, address, cookie, given.jobs)
            memory(api, address, cookie, process, given.viewers, given.minutes)


def running(name: str, step: int) -> Object:
    """A job that has come to a step, with curves."""
    return job(name, NAMESPACE, attempt=1, progress=progress(step, STEPS))


def until_drawn(api: ApiServer, address: str, changes: int) -> str:
    """Measure changes. Returns the cookie of who has logged in."""
    with chromium() as browser, visitor(browser, address) as window:
        window.go("/login")
        window.page.get_by_label("Token").fill(TOKEN)
        window.press("Log in")
        window.page.wait_for_url(lambda url: "/login" not in url)
        step = 1
        for what, path in (("a job's page", f"/ns/{NAMESPACE}/jobs/watched"), ("the list", f"/ns/{NAMESPACE}/jobs")):
            window.go(path)
            found = [delay(api, window, at) for at in range(step, step + changes)]
            step += changes
            print(f"change on {what}: {spread(found)}", flush=True)
        return "; ".join(f"{each['name']}={each['value']}" for each in window.context.cookies())


def delay(api: ApiServer, window: Visitor, step: int) -> float:
    """Seconds from a change to its first frame."""
    if window.page.evaluate("window.seen === undefined"):
        window.page.evaluate(SEEN)
        api.opened.wait(10)
        time.sleep(1)
    time.sleep(random.Random(step).uniform(0, 2.5))
    changed = running("watched", step)
    began = time.time()
    api.put(changed)
    drawn = until(f"step {step} is drawn", lambda: window.page.evaluate(f"window.seen['{step}'] ?? 0"), every=0.02)
    return float(drawn) - began


def lists(api: ApiServer, address: str, cookie: str, count: int) -> None:
    """The list of many jobs."""
    for at in range(count):
        api.put(running(f"job-{at:04}", 256 + at))
    there, bearer = {"Cookie": cookie}, {"Authorization": f"Bearer {TOKEN}"}
    page = [get(address, f"/ns/{NAMESPACE}/jobs", there) for _ in range(LISTS)]
    server = [get(api.url, JOBS.format(namespace=NAMESPACE), bearer) for _ in range(LISTS)]
    print(f"list of {count + 1} jobs: {spread(page)}; the played API server alone: {spread(server)}", flush=True)


def get(address: str, path: str, headers: dict[str, str]) -> float:
    """Seconds of a request."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    began = time.perf_counter()
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    took = time.perf_counter() - began
    connection.close()
    assert answer.status == 200, answer.status
    return took


def memory(api: ApiServer, address: str, cookie: str, process: int, viewers: int, minutes: float) -> None:
    """Memory while viewers look on, and jobs change four times a second."""
    print(f"memory without viewers: {megabytes(process):.0f} MB", flush=True)
    with looking(address, cookie, viewers):
        began, step = time.monotonic(), 0
        shown = began
        while time.monotonic() < began + 60 * minutes:
            step += 1
            api.put(running("watched", step % STEPS))
            time.sleep(0.25)
            if time.monotonic() > shown + LOOK_SECONDS:
                shown = time.monotonic()
                print(f"  {viewers} viewers, after {shown - began:.0f} s: {megabytes(process):.0f} MB", flush=True)
    time.sleep(2)
    print(f"memory after they have left: {megabytes(process):.0f} MB; open watches: {len(api.watches)}", flush=True)


@contextmanager
def looking(address: str, cookie: str, viewers: int) -> Iterator[None]:
    """Streams that are read, half of them of the list and half of a job."""
    opened = []
    for at in range(viewers):
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        path = f"/ns/{NAMESPACE}/" + ("live" if at % 2 else "jobs/watched/live")
        connection.request("GET", path, headers={"Cookie": cookie, "Accept": "text/event-stream"})
        opened.append((connection, connection.getresponse()))

    def read(answer: http.client.HTTPResponse) -> None:
        with suppress(OSError, ValueError, AttributeError, http.client.HTTPException):
            while answer.readline():
                pass

    threads = [threading.Thread(target=read, args=(answer,), daemon=True) for _, answer in opened]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for connection, _ in opened:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(2)
        for thread in threads:
            thread.join(5)


def megabytes(process: int) -> float:
    """Resident memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def spread(found: list[float]) -> str:
    """The median and the 95th percentile."""
    most = statistics.quantiles(found, n=20)[-1] if len(found) > 1 else found[0]
    return f"p50 {statistics.median(found):.3f} s, p95 {most:.3f} s, most {max(found):.3f} s ({len(found)})"


if __name__ == "__main__":
    main()
