"""Settings of the page, read once from the environment. The chart's values set them; on a laptop, the program does."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_cli.cluster.kubeconfig import Settings as Server
from finetune_cli.problem import Problem

IN_CLUSTER_CA = "/etc/finetune-ui/ca/ca.crt"
PREFIX = "FINETUNE_UI_"


@dataclass(frozen=True)
class Settings:
    """One page, for one API server."""

    server: Server
    """The API server. In a cluster without a user: each request brings the token of its own."""
    token_header: str = ""
    """Header in which a proxy puts the token of the user, such as Authorization. Empty: users paste a token."""
    cookie_key: bytes | None = field(default=None, repr=False)
    """Fernet key of the cookies. None: a key in memory, so a restart ends all sessions."""
    secure: bool = True
    """Whether browsers reach the page by TLS."""
    laptop: bool = False
    """Whether all sessions act as the user of the kubeconfig."""
    hosts: tuple[str, ...] = ("*",)
    """Host names under which the page answers."""
    port: int = 8080
    namespaces: tuple[str, ...] = ()
    """Namespaces that are offered to a user who may not list them."""
    trainer_image: str = ""
    """The trainer image of the release. Empty: jobs tell it."""

    @property
    def cookie_prefix(self) -> str:
        """What the names of cookies begin with. Browsers bind __Host- cookies to TLS and to this host alone. Cookies
        do not know ports, so a laptop's cookies name theirs."""
        return "__Host-finetune-" if self.secure else f"finetune-{self.port}-"


def of_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a pod. Raises Problem if it runs in no cluster."""

    def value(name: str, default: str = "") -> str:
        return environment.get(PREFIX + name) or default

    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    address = value("SERVER") or (f"https://{f'[{host}]' if host and ':' in host else host}:{port}" if host else "")
    if not address:
        raise Problem("This is no pod of a cluster. On a laptop, run `kubectl finetune ui`.")
    key = value("COOKIE_KEY_FILE")
    return Settings(
        server=Server(address, "default", "in-cluster", {"certificate-authority": value("CA_FILE", IN_CLUSTER_CA)}),
        token_header=value("TOKEN_HEADER"),
        cookie_key=Path(key).read_bytes().strip() if key else None,
        secure=value("SECURE", "true") == "true",
        port=int(value("PORT", "8080")),
        trainer_image=value("TRAINER_IMAGE"),
        namespaces=tuple(name for name in value("NAMESPACES").split(",") if name),
    )
