"""Fetching from a hub: complete, checked, once; and the messages when it fails."""

import dataclasses
import threading
from pathlib import Path

import pytest
from finetune_trainer.errors import AccessDenied, InvalidSpec, NoSpace, NotFound, SourceUnreachable
from finetune_trainer.fetch import FetchContext, Fetched, digests, fetch

from tests.hub import Hub
from tests.unit.trainer.fetch.conftest import TOKEN

WEIGHTS = bytes(range(256)) * 20
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle",
    "modeling.py": b"code",
    ".gitattributes": b"",
}
URI = "hf://org/small"


def files(fetched: Fetched) -> dict[str, bytes]:
    return {p.relative_to(fetched.path).as_posix(): p.read_bytes() for p in fetched.path.rglob("*") if p.is_file()}


def test_a_model_is_fetched_with_weights_and_tokenizer_and_without_code(hub: Hub, context: FetchContext) -> None:
    commit = hub.add("org/small", MODEL)
    reported: list[tuple[int, int]] = []
    fetched = fetch(URI, "model", context, progress=lambda done, total: reported.append((done, total)))
    wanted = {name: MODEL[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    assert files(fetched) == wanted
    assert fetched.revision == commit
    assert reported[-1] == (sum(map(len, wanted.values())),) * 2


def test_code_is_fetched_only_if_it_may_run(hub: Hub, context: FetchContext) -> None:
    hub.add("org/small", {**MODEL, "tests/run.py": b"of the repository", ".hidden.py": b""})
    plain = fetch(URI, "model", context)
    fetched = fetch(URI, "model", context, code=True)
    assert set(files(fetched)) - set(files(plain)) == {"modeling.py"}
    assert files(fetch(URI, "model", context)) == files(plain)
    assert fetched.digest != plain.digest
    assert fetched.digest_without_code == plain.digest_without_code == plain.digest


def test_the_digest_equals_that_of_the_same_folder_on_a_volume(hub: Hub, context: FetchContext, tmp_path: Path) -> None:
    hub.add("org/small", MODEL)
    fetched = fetch(URI, "model", context)
    volume = dataclasses.replace(context, volumes={"models": fetched.path.parent})
    assert fetch("pvc://models/files", "model", volume).digest == fetched.digest


def test_a_broken_connection_is_resumed(hub: Hub, context: FetchContext) -> None:
    hub.add("org/small", MODEL)
    hub.cut["model.safetensors"] = 3000
    assert files(fetch(URI, "model", context))["model.safetensors"] == WEIGHTS
    assert [asked for name, asked in hub.ranges if name == "model.safetensors"] == [None, "bytes=3000-"]


def test_a_stopped_fetch_is_resumed_by_the_next_run(hub: Hub, context: FetchContext) -> None:
    hub.add("org/small", MODEL)
    hub.cut["model.safetensors"] = 3000

    def stop() -> None:
        if any(name == "model.safetensors" for name, _ in hub.ranges) and "model.safetensors" not in hub.cut:
            part = next(context.cache.rglob("model.safetensors.part"), None)
            if part and part.stat().st_size >= 3000:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(URI, "model", context, check_stop=stop)
    assert not list(context.cache.rglob("manifest.json"))
    fetched = fetch(URI, "model", dataclasses.replace(context, owner="run-2"))
    assert files(fetched)["model.safetensors"] == WEIGHTS
    assert ("model.safetensors", "bytes=3000-") in hub.ranges


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_fetched_again(hub: Hub, context: FetchContext, name: str) -> None:
    hub.add("org/small", MODEL)
    hub.damage[name] = 1
    assert files(fetch(URI, "model", context))[name] == MODEL[name]


def test_a_file_that_stays_damaged_is_never_cached(hub: Hub, context: FetchContext) -> None:
    hub.add("org/small", MODEL)
    hub.damage["model.safetensors"] = 99
    with pytest.raises(SourceUnreachable, match=r"model\.safetensors is damaged: expected sha256"):
        fetch(URI, "model", context)
    assert not list(context.cache.rglob("manifest.json"))


def test_two_concurrent_runs_fetch_once(hub: Hub, context: FetchContext) -> None:
    hub.add("org/small", MODEL)
    ended: list[Fetched] = []
    runs = [dataclasses.replace(context, owner=f"run-{n}") for n in range(2)]
    threads = [threading.Thread(target=lambda p=p: ended.append(fetch(URI, "model", p))) for p in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.path for result in ended}) == 1
    assert len(ended) == 2
    assert [name for name, _ in hub.ranges].count("model.safetensors") == 1


def test_a_pinned_commit_needs_no_network_the_second_time(hub: Hub, context: FetchContext) -> None:
    commit = hub.add("org/small", MODEL)
    first = fetch(f"{URI}@{commit}", "model", context)
    asked = hub.requests
    assert fetch(f"{URI}@{commit}", "model", context) == first
    assert hub.requests == asked


def test_a_branch_that_moved_is_fetched_again_and_never_taken_from_the_cache(hub: Hub, context: FetchContext) -> None:
    hub.add("org/small", MODEL)
    first = fetch(URI, "model", context)
    hub.add("org/small", {**MODEL, "config.json": b'{"new": 1}'})
    assert fetch(URI, "model", context).digest != first.digest
    hub.broken = 10_000
    with pytest.raises(SourceUnreachable, match="answers 503"):
        fetch(URI, "model", context)


def test_a_busy_server_is_asked_again(hub: Hub, context: FetchContext) -> None:
    hub.add("org/small", MODEL)
    hub.broken = 2
    assert fetch(URI, "model", context).revision


def test_an_entry_that_lost_a_file_is_repaired(hub: Hub, context: FetchContext) -> None:
    commit = hub.add("org/small", MODEL)
    first = fetch(f"{URI}@{commit}", "model", context)
    (first.path / "config.json").unlink()
    assert "config.json" in files(fetch(f"{URI}@{commit}", "model", context))


def test_a_rejected_token_is_named_but_not_shown(
    hub: Hub, context: FetchContext, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("org/small", MODEL)
    hub.token = "another"
    with caplog.at_level("DEBUG"), pytest.raises(AccessDenied, match="HF_TOKEN") as denied:
        fetch(URI, "model", context)
    assert TOKEN not in str(denied.value) + caplog.text


@pytest.mark.parametrize(
    ("uri", "words"),
    [("hf://org/other", "org/other"), (f"{URI}@nowhere", "revision"), (f"{URI}/none", "It has: .gitattributes")],
)
def test_missing_repositories_revisions_and_files_are_named(
    hub: Hub, context: FetchContext, uri: str, words: str
) -> None:
    hub.add("org/small", MODEL)
    with pytest.raises(NotFound, match=words):
        fetch(uri, "model", context)


def test_a_repository_with_pickles_only_is_refused(hub: Hub, context: FetchContext) -> None:
    hub.add("org/small", {"pytorch_model.bin": b"a pickle"})
    with pytest.raises(NotFound, match=r"no \.safetensors.*pytorch_model\.bin"):
        fetch(URI, "model", context)


@pytest.mark.parametrize(
    "name", ["../escape.json", "a/../../escape.json", "/escape.json", "a\\..\\b.json", "a\nb.json"]
)
def test_names_that_lead_out_of_the_entry_are_refused(hub: Hub, context: FetchContext, name: str) -> None:
    hub.add("org/rows", {name: b"{}", "a.jsonl": b"{}"}, "datasets")
    fetchable = "hf://org/rows"
    with pytest.raises(InvalidSpec, match="Rename it"):
        fetch(fetchable, "data", context)
    assert not list(context.cache.parent.parent.rglob("escape.json"))


def test_a_full_workspace_is_reported_before_the_fetch(
    hub: Hub, context: FetchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/small", MODEL)
    usage = type("Usage", (), {"free": 100, "total": 1000, "used": 900})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(NoSpace, match=r"needs .* GB more .* GB free"):
        fetch(URI, "model", context)
    assert not hub.ranges


CARD = b"""---
configs:
- config_name: chat
  default: true
  data_files:
  - {split: train, path: "a/*.jsonl"}
  - {split: held, path: b.jsonl}
- config_name: code
  data_files: c.jsonl
---
"""


@pytest.mark.parametrize(
    ("card", "split", "subset", "wanted"),
    [
        (None, "train", None, {"train-1.jsonl", "train-2.jsonl"}),
        (None, None, None, {"train-1.jsonl", "train-2.jsonl", "a/1.jsonl", "b.jsonl", "c.jsonl"}),
        (CARD, None, None, {"train/a/1.jsonl"}),
        (CARD, "held", None, {"held/b.jsonl"}),
        (CARD, None, "code", {"train/c.jsonl"}),
    ],
)
def test_only_the_files_of_the_split_are_fetched(
    hub: Hub, context: FetchContext, card: bytes | None, split: str | None, subset: str | None, wanted: set[str]
) -> None:
    names = ["train-1.jsonl", "train-2.jsonl", "test.jsonl", "a/1.jsonl", "b.jsonl", "c.jsonl", "run.py"]
    hub.add("org/rows", {**dict.fromkeys(names, b"{}"), **({"README.md": card} if card else {})}, "datasets")
    assert set(files(fetch("hf://org/rows", "data", context, split=split, subset=subset))) == wanted


def test_a_single_file_of_a_repository_is_fetched(hub: Hub, context: FetchContext) -> None:
    hub.add("org/rows", {"a/1.jsonl": b"1", "b.jsonl": b"2"}, "datasets")
    fetched = fetch("hf://org/rows/a/1.jsonl", "data", context)
    assert fetched.path.read_bytes() == b"1"
    assert fetched.files == digests.hash_files(fetched.path, "x", context.cache, lambda *_: None, lambda: None)
