"""Who the user is, for the API server: tokens, client certificates, and programs that get them (exec plugins)."""

import base64
import json
import os
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_cli.cluster.kubeconfig import Settings
from finetune_cli.problem import Exit, Problem

EXPIRES_SOON = 30
"""Seconds before its end at which a credential is renewed."""


class Credentials:
    """The credentials of one user. `renew` forgets what an exec plugin said, after a 401."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._user = settings.user
        self._answer: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def headers(self) -> dict[str, str]:
        """Headers of each request."""
        headers = {}
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        elif self._user.get("username"):
            pair = f"{self._user['username']}:{self._user.get('password', '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        if self._user.get("as"):
            headers["Impersonate-User"] = self._user["as"]
        return headers

    def renew(self) -> bool:
        """Whether new credentials may be had."""
        self._answer = None
        return bool(self._user.get("exec") or self._user.get("tokenFile"))

    def tls(self) -> ssl.SSLContext:
        """What the connection trusts, and the client's certificate."""
        cluster = self._settings.cluster
        context = ssl.create_default_context()
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        elif data := cluster.get("certificate-authority-data"):
            context = ssl.create_default_context(cadata=base64.b64decode(data).decode())
        elif path := cluster.get("certificate-authority"):
            context = ssl.create_default_context(cafile=path)
        certificate, key = self._certificate()
        if certificate and key:
            _load_chain(context, certificate, key)
        return context

    def _token(self) -> str | None:
        if self._user.get("token"):
            return str(self._user["token"])
        if self._user.get("tokenFile"):
            try:
                return Path(self._user["tokenFile"]).read_text().strip()
            except OSError as error:
                raise Problem(f"The token file of the kubeconfig cannot be read: {error}", Exit.DENIED) from error
        status = self._executed()
        return str(status["token"]) if status.get("token") else None

    def _certificate(self) -> tuple[bytes | None, bytes | None]:
        status = self._executed()
        if status.get("clientCertificateData"):
            return status["clientCertificateData"].encode(), status["clientKeyData"].encode()
        return _material(self._user, "client-certificate"), _material(self._user, "client-key")

    def _executed(self) -> dict[str, Any]:
        """What the exec plugin says; asked again shortly before its answer expires."""
        plugin = self._user.get("exec")
        if not plugin:
            if self._user.get("auth-provider"):
                raise Problem(
                    "The kubeconfig uses auth-provider, which Kubernetes removed in 1.26. Get a new kubeconfig from"
                    " your provider's own tool.",
                    Exit.DENIED,
                )
            return {}
        with self._lock:
            if self._answer is None or _expired(self._answer):
                self._answer = _run(plugin, self._settings)
            return self._answer


def _material(user: Mapping[str, Any], name: str) -> bytes | None:
    if user.get(f"{name}-data"):
        return base64.b64decode(user[f"{name}-data"])
    if not user.get(name):
        return None
    try:
        return Path(user[name]).read_bytes()
    except OSError as error:
        raise Problem(f"{name} of the kubeconfig cannot be read: {error}", Exit.DENIED) from error


def _load_chain(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """ssl reads certificates from files only."""
    handle, path = tempfile.mkstemp()
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(certificate + b"\n" + key)
        context.load_cert_chain(path)
    finally:
        with suppress(OSError):
            os.unlink(path)


def _expired(status: Mapping[str, Any]) -> bool:
    end = status.get("expirationTimestamp")
    if not end:
        return False
    return (datetime.fromisoformat(end.replace("Z", "+00:00")) - datetime.now(UTC)).total_seconds() < EXPIRES_SOON


def _run(plugin: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    version = plugin.get("apiVersion", "client.authentication.k8s.io/v1")
    info: dict[str, Any] = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": True}}
    if plugin.get("provideClusterInfo"):
        cluster = {
            key: settings.cluster[key]
            for key in ("server", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name")
            if key in settings.cluster
        }
        info["spec"]["cluster"] = cluster
    environment = os.environ | {entry["name"]: entry["value"] for entry in plugin.get("env") or ()}
    environment["KUBERNETES_EXEC_INFO"] = json.dumps(info)
    command = [plugin["command"], *(plugin.get("args") or ())]
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        status: dict[str, Any] = json.loads(done.stdout)["status"]
    except FileNotFoundError as error:
        hint = plugin.get("installHint") or f"Install {command[0]}, or put it on the PATH."
        raise Problem(
            f"The kubeconfig gets credentials from {command[0]}, which is missing. {hint}", Exit.DENIED
        ) from error
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError) as error:
        raise Problem(
            f"The kubeconfig gets credentials from {command[0]}, which failed: {error}. Run it by itself, and log in"
            " again.",
            Exit.DENIED,
        ) from error
    return status
