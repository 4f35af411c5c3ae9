"""Debian's Chromium without a screen, and the web page as a process, for tests, pictures and measurements.

Nothing is downloaded for it: playwright drives the Chromium of the machine, and axe-core comes with `make assets`.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, sync_playwright

from tests.cluster import packages
from tests.kube import until

CHECKOUT = Path(__file__).resolve().parents[2]
AXE = CHECKOUT / "ui" / "node_modules" / "axe-core" / "axe.min.js"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""For a server without TLS: a file of certificates has to be there all the same."""
SECONDS = 60.0
"""Patience of the browser with what a test waits for."""
FLAGS = ("--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update")
DESKTOP, PHONE = (1280, 800), (390, 844)
ENTRANCE = re.compile(r"http://\S+/enter\?key=\S+")
REPORT_VIOLATIONS = """document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));"""
RUN_AXE = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.map((found) =>
  `${found.impact} ${found.id}: ${found.nodes.map((node) => node.html.slice(0, 160)).join(" | ")}`)"""
TWO_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
OPEN = "(start) => { for (let at = start; at; at = at.parentElement) if (at.tagName === 'DETAILS') at.open = true; }"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser. It is one process tree, and ends with the block."""
    packages.ensure(packages.BROWSER)
    program = packages.find("chromium")
    # The sandbox of Chromium does not start as root. It visits our own page alone.
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visitor:
    """A window with cookies of its own, and all that went wrong in it."""

    context: BrowserContext
    page: Page
    address: str
    """The address of the web page, without a path."""
    problems: list[str] = field(default_factory=list)
    """Errors and warnings of the console, violations of the policy, and scripts that failed."""

    def go(self, path: str) -> None:
        """Open a path of the page."""
        self.page.goto(self.address + path)

    def heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{self.page.url}: {message.text}")

    def shows(self, words: str) -> None:
        """Wait until the words are on the page."""
        self.page.get_by_text(words).first.wait_for()

    def press(self, name: str) -> None:
        """Press the button with exactly this name."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def follow(self, name: str) -> None:
        """Follow the link with exactly this name."""
        self.page.get_by_role("link", name=name, exact=True).first.click()

    def control(self, name: str) -> Locator:
        """A control of the form, by the path of its field. What it is folded in is opened."""
        found = self.page.locator(f'[id="{name}"]')
        found.evaluate(OPEN)
        return found

    def barriers(self) -> list[str]:
        """What axe finds, serious or critical, on this page at this width."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found: list[str] = self.page.evaluate(RUN_AXE)
        return [each for each in found if each.startswith(("serious", "critical"))]

    def overflow(self) -> int:
        """Pixels by which the document is wider than the window."""
        return int(
            self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") or 0
        )

    def resize(self, size: tuple[int, int]) -> None:
        """Another size. Curves get theirs in the next frame."""
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.evaluate(TWO_FRAMES)


@contextmanager
def visitor(browser: Browser, address: str, size: tuple[int, int] = DESKTOP, **options: Any) -> Iterator[Visitor]:
    """A new window. Options are those of `Browser.new_context`."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    context.set_default_timeout(SECONDS * 1000)
    context.add_init_script(REPORT_VIOLATIONS)
    made = Visitor(context, context.new_page(), address)
    made.page.on("console", made.heard)
    made.page.on("pageerror", lambda error: made.problems.append(f"{made.page.url}: {error}"))
    try:
        yield made
    finally:
        context.close()


@dataclass(frozen=True)
class Server:
    """An API server, and a user's token for it."""

    url: str
    token: str
    authority: str = ""
    """Its certificate authority in base64, as in a kubeconfig. Empty: the server has no TLS."""

    def kubeconfig(self, namespace: str) -> str:
        """A kubeconfig of the user."""
        cluster = {"server": self.url, **({"certificate-authority-data": self.authority} if self.authority else {})}
        context = {"cluster": "c", "user": "u", "namespace": namespace}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": self.token}}],
                "contexts": [{"name": "c", "context": context}],
                "current-context": "c",
            }
        )


@contextmanager
def on_laptop(server: Server, namespace: str, folder: Path) -> Iterator[str]:
    """`kubectl finetune ui` as a process. Yields the address that it prints, whose key works once."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(server.kubeconfig(namespace))
    command = ("-m", "finetune_cli", "ui", "--no-browser")
    with _running(command, {"KUBECONFIG": str(kubeconfig)}, folder / "laptop.log") as log:
        yield until("the program prints its address", lambda: ENTRANCE.findall(log.read_text()))[0]


@contextmanager
def in_pod(server: Server, folder: Path) -> Iterator[tuple[str, int]]:
    """The page as its image starts it, for users who paste a token. Yields its address and the id of its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    authority = folder / "ca.crt"
    authority.write_bytes(base64.b64decode(server.authority) or CERTIFICATES.read_bytes())
    settings = {"SERVER": server.url, "PORT": str(port), "SECURE": "false", "CA_FILE": str(authority)}
    environment = {f"FINETUNE_UI_{name}": value for name, value in settings.items()}
    with _running(("-m", "finetune_ui"), environment, folder / "pod.log") as log:
        until(f"the page listens ({log})", lambda: _answers(port))
        yield f"http://127.0.0.1:{port}", int(log.with_suffix(".pid").read_text())


@contextmanager
def _running(command: tuple[str, ...], environment: Mapping[str, str], log: Path) -> Iterator[Path]:
    """A Python program while the block runs; yields the file with its output."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, *command], env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
        )
        log.with_suffix(".pid").write_text(str(started.pid))
        try:
            yield log
        finally:
            started.terminate()
            with suppress(subprocess.TimeoutExpired):
                started.wait(15)
            started.kill()
            started.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    connection.close()
    return False
