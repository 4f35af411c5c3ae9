"""A namespace with 500 jobs: every job is shown, and what is sent is a fraction of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_cli import jobs, tree, views
from finetune_cli.cluster import client
from finetune_cli.cluster.client import Client

from tests.unit.cli.job_server import JOBS, NAMESPACE, Store, kubeconfig, served

JOBS_IN_ALL = 500
BEGUN = "2026-01-31T12:00:00Z"
NAMES = [f"job-{number:03}" for number in range(JOBS_IN_ALL)]


def put(store: Store, number: int) -> None:
    """A job with curves. The first of each ten is the base of the others."""
    base = number - number % 10
    model = {"fromJob": NAMES[base]} if number % 10 else {"source": "hf://a/b"}
    progress = {"summary": "5/10 (50%)", "loss": "0.5", "curves": {"loss": f"1;1*256;{'2.5,' * 255}{number}"}}
    head = {
        "name": NAMES[number],
        "namespace": NAMESPACE,
        "uid": str(number),
        "creationTimestamp": "2026-01-31T12:00:00Z",
    }
    status = {"phase": "Running", "progress": progress}
    store.put(JOBS, {"metadata": head, "spec": {"stage": "sft", "model": model}, "status": status})


@pytest.fixture
def store() -> Store:
    made = Store()
    for number in range(JOBS_IN_ALL):
        put(made, number)
    return made


@pytest.fixture
def asked(store: Store, tmp_path: Path) -> Iterator[Client]:
    config = tmp_path / "kubeconfig"
    with served(store) as url:
        config.write_text(kubeconfig(url))
        yield client.client(None, None, str(config))


def test_a_list_has_all_of_them_in_few_small_answers(
    store: Store, asked: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    found = jobs.all_of(asked)
    views.show_list(found)
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["NAME", *NAMES]
    assert len(store.asked) == 2
    assert store.sent < len(json.dumps(found)) / 5


def test_a_tree_has_each_job_under_its_base(asked: Client) -> None:
    found = jobs.all_of(asked)
    lines = tree.draw(found)
    assert len(lines) == JOBS_IN_ALL
    assert [line.split()[0] for line in lines if line.startswith("job-")] == NAMES[::10]
    chain = tree.related(found, "job-013")
    assert [job["metadata"]["name"] for job in chain] == NAMES[10:20]
