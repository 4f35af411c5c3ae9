"""Runs the application: in a pod of the chart, or on a laptop for `kubectl finetune ui`."""

import logging
import socket

import uvicorn
from finetune_cli.cluster.kubeconfig import Settings as Server
from finetune_cli.problem import Exit, Problem

from finetune_ui.app import STATIC, create
from finetune_ui.settings import Settings, of_environment

LOOPBACK = "127.0.0.1"
STOP_SECONDS = 5
"""Streams of pages end then. Browsers open them again."""


def in_cluster() -> None:
    """Serve until a signal ends the process."""
    settings = of_environment()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # IPv6 sockets take IPv4, too. Clusters without IPv6 have no such address.
    _run(settings, _listening("::" if socket.has_dualstack_ipv6() else "0.0.0.0", settings.port))


def on_laptop(server: Server, port: int = 0, open_browser: bool = True) -> None:
    """Serve on loopback as the user of a kubeconfig, until Ctrl-C. Other users of the machine can connect, but know
    neither the key in the address nor the cookie."""
    check_assets()
    listening = _listening(LOOPBACK, port)
    port = listening.getsockname()[1]
    settings = Settings(server, secure=False, laptop=True, hosts=(LOOPBACK, "localhost"), port=port)
    _run(settings, listening, open_browser)


def check_assets() -> None:
    """Raises Problem if what browsers load was not installed with the package."""
    if not (STATIC / "vendor" / "htmx.min.js").exists():
        raise Problem("The page lacks the scripts that browsers load. In a checkout, run `make assets`.")


def _run(settings: Settings, listening: socket.socket, open_browser: bool = False) -> None:
    app = create(settings)
    # Addresses are not logged: that of a laptop has the one-time key.
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    if settings.laptop:
        address = f"http://{LOOPBACK}:{settings.port}/enter?key={app.state.ui.sessions.one_time_key()}"
        print(f"Open {address}\nThe address works once. Ctrl-C ends the page; the jobs continue.", flush=True)
        if open_browser:
            import webbrowser

            webbrowser.open(address)
    uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=family is socket.AF_INET6)
    except OSError as error:
        raise Problem(f"The page cannot listen on {host}, port {port}: {error.strerror}", Exit.FAILED) from error
