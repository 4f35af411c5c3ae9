"""The way to the API server: kubeconfigs, credentials, proxies, and what errors say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_cli.cluster import kubeconfig
from finetune_cli.cluster.connection import proxy_of
from finetune_cli.cluster.credentials import Credentials
from finetune_cli.cluster.errors import denied, described
from finetune_cli.cluster.kubeconfig import Settings
from finetune_cli.problem import Exit, Problem


def config(folder: Path, name: str, **changes: Any) -> Path:
    document = {
        "current-context": "one",
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://a:6443", "certificate-authority": "ca.crt"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        **changes,
    }
    path = folder / name
    path.write_text(yaml.safe_dump(document))
    return path


def test_files_are_merged_and_the_first_wins(tmp_path: Path) -> None:
    first = config(tmp_path, "first", users=[])
    second = config(
        tmp_path,
        "second",
        contexts=[
            {"name": "one", "context": {"cluster": "other"}},
            {"name": "two", "context": {"cluster": "c", "user": "u"}},
        ],
    )
    environment = {"KUBECONFIG": f"{first}:{second}:{tmp_path / 'missing'}"}
    one = kubeconfig.load(environment=environment)
    assert (one.server, one.namespace, one.user) == ("https://a:6443", "team", {"token": "t"})
    assert one.cluster["certificate-authority"] == str(tmp_path / "ca.crt")
    two = kubeconfig.load("two", environment=environment)
    assert two.namespace == "default"


def test_a_context_that_is_missing_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"no context other\. It has: one"):
        kubeconfig.load("other", environment={"KUBECONFIG": str(config(tmp_path, "a"))})


def test_without_any_cluster_the_message_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="set KUBECONFIG") as caught:
        kubeconfig.load(environment={"HOME": str(tmp_path)})
    assert caught.value.code is Exit.UNREACHABLE


def plugin(answer: str) -> Settings:
    return Settings("https://a", "n", "c", user={"exec": {"command": sys.executable, "args": ["-c", answer]}})


def test_an_exec_plugin_gives_a_token_once_until_it_expires(tmp_path: Path) -> None:
    counter = tmp_path / "calls"
    program = (
        f"open({str(counter)!r}, 'a').write('x');"
        ' print(\'{"status": {"token": "abc", "expirationTimestamp": "2199-01-01T00:00:00Z"}}\')'
    )
    credentials = Credentials(plugin(program))
    assert [credentials.headers()["Authorization"] for _ in range(2)] == ["Bearer abc"] * 2
    assert counter.read_text() == "x"
    assert credentials.renew()
    credentials.headers()
    assert counter.read_text() == "xx"


def test_an_exec_plugin_that_fails_says_to_log_in(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="log in") as caught:
        Credentials(plugin("raise SystemExit(1)")).headers()
    assert caught.value.code is Exit.DENIED


def test_a_proxy_comes_from_the_kubeconfig_or_the_environment() -> None:
    plain = Settings("https://10.1.2.3:6443", "n", "c")
    assert proxy_of(plain, {}) is None
    found = proxy_of(plain, {"HTTPS_PROXY": "http://proxy:3128"})
    assert found is not None
    assert found.hostname == "proxy"
    assert proxy_of(plain, {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8,.local"}) is None
    with pytest.raises(Problem, match="not supported"):
        proxy_of(Settings("https://a", "n", "c", {"proxy-url": "socks5://p:1"}), {})


@pytest.mark.parametrize(
    ("status", "text", "code", "words"),
    [
        (401, b"", Exit.DENIED, "does not know you"),
        (403, b'{"message": "no"}', Exit.DENIED, 'You may not patch finetunejobs "a" in namespace n'),
        (404, b'{"details": {"name": "a"}}', Exit.NOT_FOUND, 'There is no FineTuneJob "a" in namespace n'),
        (404, b'{"details": {"kind": "namespaces", "name": "n"}}', Exit.NOT_FOUND, "Namespace n does not exist"),
        (404, b"404 page not found", Exit.NOT_FOUND, "does not know FineTuneJobs"),
        (422, b'{"message": "spec.stage: wrong"}', Exit.REFUSED, "spec.stage: wrong"),
    ],
)
def test_a_refusal_says_what_was_refused(status: int, text: bytes, code: Exit, words: str) -> None:
    path = "/apis/finetune-operator.io/v1alpha1/namespaces/n/finetunejobs/a"
    error = denied("PATCH", path, status, text, Settings("https://a", "n", "c"))
    assert error.code is code
    assert words in str(error)


def test_a_path_is_described() -> None:
    assert described("/api/v1/namespaces/n/pods/p/log") == 'pods/log "p" in namespace n'
    assert described("/api/v1/nodes") == "nodes"
