"""A hub on loopback, the fetch context of a workspace, and retries without pauses."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from finetune_trainer.fetch import FetchContext, retry

from tests.hub import Hub

TOKEN = "hf_" + "verysecret"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "wait", lambda _seconds, check_stop: check_stop())
    monkeypatch.setattr("finetune_trainer.fetch.download.wait", lambda _seconds, check_stop: check_stop())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # Read from the environment when the library is imported, which other tests may have done.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    running = Hub()
    monkeypatch.setenv("HF_ENDPOINT", running.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield running
    running.close()


@pytest.fixture
def context(tmp_path: Path) -> FetchContext:
    return FetchContext(tmp_path / "workspace" / "cache", {}, tmp_path / "configmaps", "run-1")
