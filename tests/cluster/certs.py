"""The keys and certificates of a cluster, made with the openssl program.

Called by cluster.py. A single authority signs every identity. Existing files are kept, so the parts of a running
cluster keep trusting each other. Keys are P-256, because they are made in milliseconds.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cluster.state import ClusterError, State, replace

# Our own configuration, to ignore the machine's openssl.cnf (which makes every certificate an authority).
CONFIG = "[req]\ndistinguished_name = subject\n[subject]\n"
VALID = ["-days", "3650"]


def ensure_authority(state: State) -> None:
    state.pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace(state.pki / "openssl.cnf", CONFIG)
    _certificate(
        state.pki,
        "ca",
        f"/CN={state.context}",
        [],
        ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,digitalSignature"],
    )
    key, public = state.pki / "service-accounts.key", state.pki / "service-accounts.pub"
    if not public.exists():
        _openssl(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key)])
        _openssl(["pkey", "-in", str(key), "-pubout", "-out", f"{public}.new"])
        Path(f"{public}.new").replace(public)


def ensure(state: State, name: str, user: str, group: str = "", hosts: tuple[str, ...] = ()) -> None:
    """Make the certificate of an identity: user and group of a client, and the addresses of a server, if any."""
    subject = (f"/O={group}" if group else "") + f"/CN={user}"
    extensions = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=clientAuth,serverAuth",
    ]
    if hosts:
        kinds = ("IP" if host.replace(".", "").isdigit() else "DNS" for host in hosts)
        extensions.append(
            "subjectAltName=" + ",".join(f"{kind}:{host}" for kind, host in zip(kinds, hosts, strict=True))
        )
    _certificate(
        state.pki, name, subject, ["-CA", str(state.pki / "ca.crt"), "-CAkey", str(state.pki / "ca.key")], extensions
    )


def _certificate(pki: Path, name: str, subject: str, signer: list[str], extensions: list[str]) -> None:
    certificate, key = pki / f"{name}.crt", pki / f"{name}.key"
    if certificate.exists() and key.exists():
        return
    new = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        f"{certificate}.new",
    ]
    options = [option for extension in extensions for option in ("-addext", extension)]
    config = ["-config", str(pki / "openssl.cnf")]
    _openssl(["req", "-x509", *config, *new, *VALID, "-subj", subject, *signer, *options])
    # The certificate is written last, so its key exists whenever it exists.
    Path(f"{certificate}.new").replace(certificate)


def _openssl(arguments: list[str]) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"openssl {arguments[0]} failed (it must be version 3): {done.stderr.strip()}")
