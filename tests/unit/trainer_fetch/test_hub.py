"""Fetching from a hub: whole, checked, once; and what is said when it can't be."""

import dataclasses
import threading
from pathlib import Path

import pytest
from finetune_trainer.errors import AccessDenied, InvalidSpec, NoSpace, NotFound, SourceUnreachable
from finetune_trainer.fetch import Fetched, Places, digest, fetch

from tests.hub import Hub
from tests.unit.trainer_fetch.conftest import TOKEN

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


def test_a_model_is_its_weights_and_tokenizer_and_no_code(hub: Hub, places: Places) -> None:
    commit = hub.add("org/small", MODEL)
    heard: list[tuple[int, int]] = []
    fetched = fetch(URI, "model", places, progress=lambda done, total: heard.append((done, total)))
    wanted = {name: MODEL[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    assert files(fetched) == wanted
    assert fetched.revision == commit
    assert heard[-1] == (sum(map(len, wanted.values())),) * 2


def test_code_comes_along_where_it_may_run(hub: Hub, places: Places) -> None:
    hub.add("org/small", {**MODEL, "tests/run.py": b"of the repository", ".hidden.py": b""})
    plain = fetch(URI, "model", places)
    fetched = fetch(URI, "model", places, code=True)
    assert set(files(fetched)) - set(files(plain)) == {"modeling.py"}
    assert files(fetch(URI, "model", places)) == files(plain)
    assert fetched.digest != plain.digest
    assert fetched.digest_without_code == plain.digest_without_code == plain.digest


def test_the_digest_is_that_of_the_same_folder_on_a_volume(hub: Hub, places: Places, tmp_path: Path) -> None:
    hub.add("org/small", MODEL)
    fetched = fetch(URI, "model", places)
    volume = dataclasses.replace(places, volumes={"models": fetched.path.parent})
    assert fetch("pvc://models/files", "model", volume).digest == fetched.digest


def test_a_cut_connection_goes_on_where_it_ended(hub: Hub, places: Places) -> None:
    hub.add("org/small", MODEL)
    hub.cut["model.safetensors"] = 3000
    assert files(fetch(URI, "model", places))["model.safetensors"] == WEIGHTS
    assert [asked for name, asked in hub.ranges if name == "model.safetensors"] == [None, "bytes=3000-"]


def test_a_run_that_was_stopped_is_gone_on_with(hub: Hub, places: Places) -> None:
    hub.add("org/small", MODEL)
    hub.cut["model.safetensors"] = 3000

    def stop() -> None:
        if any(name == "model.safetensors" for name, _ in hub.ranges) and "model.safetensors" not in hub.cut:
            part = next(places.cache.rglob("model.safetensors.part"), None)
            if part and part.stat().st_size >= 3000:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(URI, "model", places, check_stop=stop)
    assert not list(places.cache.rglob("manifest.json"))
    fetched = fetch(URI, "model", dataclasses.replace(places, owner="run-2"))
    assert files(fetched)["model.safetensors"] == WEIGHTS
    assert ("model.safetensors", "bytes=3000-") in hub.ranges


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_byte_is_found_and_fetched_again(hub: Hub, places: Places, name: str) -> None:
    hub.add("org/small", MODEL)
    hub.damage[name] = 1
    assert files(fetch(URI, "model", places))[name] == MODEL[name]


def test_bytes_that_stay_wrong_are_never_kept(hub: Hub, places: Places) -> None:
    hub.add("org/small", MODEL)
    hub.damage["model.safetensors"] = 99
    with pytest.raises(SourceUnreachable, match=r"model\.safetensors is damaged: expected sha256"):
        fetch(URI, "model", places)
    assert not list(places.cache.rglob("manifest.json"))


def test_two_at_once_fetch_once(hub: Hub, places: Places) -> None:
    hub.add("org/small", MODEL)
    ended: list[Fetched] = []
    runs = [dataclasses.replace(places, owner=f"run-{n}") for n in range(2)]
    threads = [threading.Thread(target=lambda p=p: ended.append(fetch(URI, "model", p))) for p in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.path for one in ended}) == 1
    assert len(ended) == 2
    assert [name for name, _ in hub.ranges].count("model.safetensors") == 1


def test_a_pinned_commit_needs_no_network_the_second_time(hub: Hub, places: Places) -> None:
    commit = hub.add("org/small", MODEL)
    first = fetch(f"{URI}@{commit}", "model", places)
    asked = hub.requests
    assert fetch(f"{URI}@{commit}", "model", places) == first
    assert hub.requests == asked


def test_a_branch_that_moved_is_fetched_anew_and_never_taken_from_the_store(hub: Hub, places: Places) -> None:
    hub.add("org/small", MODEL)
    first = fetch(URI, "model", places)
    hub.add("org/small", {**MODEL, "config.json": b'{"new": 1}'})
    assert fetch(URI, "model", places).digest != first.digest
    hub.broken = 10_000
    with pytest.raises(SourceUnreachable, match="answers 503"):
        fetch(URI, "model", places)


def test_a_server_that_is_busy_for_a_while(hub: Hub, places: Places) -> None:
    hub.add("org/small", MODEL)
    hub.broken = 2
    assert fetch(URI, "model", places).revision


def test_an_entry_that_lost_a_file_is_made_whole(hub: Hub, places: Places) -> None:
    commit = hub.add("org/small", MODEL)
    first = fetch(f"{URI}@{commit}", "model", places)
    (first.path / "config.json").unlink()
    assert "config.json" in files(fetch(f"{URI}@{commit}", "model", places))


def test_a_token_that_is_not_accepted_is_named_and_not_told(
    hub: Hub, places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("org/small", MODEL)
    hub.token = "another"
    with caplog.at_level("DEBUG"), pytest.raises(AccessDenied, match="HF_TOKEN") as denied:
        fetch(URI, "model", places)
    assert TOKEN not in str(denied.value) + caplog.text


@pytest.mark.parametrize(
    ("uri", "words"),
    [("hf://org/other", "org/other"), (f"{URI}@nowhere", "revision"), (f"{URI}/none", "It has: .gitattributes")],
)
def test_what_is_not_there(hub: Hub, places: Places, uri: str, words: str) -> None:
    hub.add("org/small", MODEL)
    with pytest.raises(NotFound, match=words):
        fetch(uri, "model", places)


def test_pickles_are_no_model(hub: Hub, places: Places) -> None:
    hub.add("org/small", {"pytorch_model.bin": b"a pickle"})
    with pytest.raises(NotFound, match=r"no \.safetensors.*pytorch_model\.bin"):
        fetch(URI, "model", places)


@pytest.mark.parametrize(
    "name", ["../escape.json", "a/../../escape.json", "/escape.json", "a\\..\\b.json", "a\nb.json"]
)
def test_names_that_could_lie_elsewhere(hub: Hub, places: Places, name: str) -> None:
    hub.add("org/rows", {name: b"{}", "a.jsonl": b"{}"}, "datasets")
    fetchable = "hf://org/rows"
    with pytest.raises(InvalidSpec, match="Rename it"):
        fetch(fetchable, "data", places)
    assert not list(places.cache.parent.parent.rglob("escape.json"))


def test_a_full_workspace_is_known_before(hub: Hub, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/small", MODEL)
    usage = type("Usage", (), {"free": 100, "total": 1000, "used": 900})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(NoSpace, match=r"needs .* GB more .* GB free"):
        fetch(URI, "model", places)
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
def test_only_the_files_of_a_split(
    hub: Hub, places: Places, card: bytes | None, split: str | None, subset: str | None, wanted: set[str]
) -> None:
    names = ["train-1.jsonl", "train-2.jsonl", "test.jsonl", "a/1.jsonl", "b.jsonl", "c.jsonl", "run.py"]
    hub.add("org/rows", {**dict.fromkeys(names, b"{}"), **({"README.md": card} if card else {})}, "datasets")
    assert set(files(fetch("hf://org/rows", "data", places, split=split, subset=subset))) == wanted


def test_one_file_of_a_repository(hub: Hub, places: Places) -> None:
    hub.add("org/rows", {"a/1.jsonl": b"1", "b.jsonl": b"2"}, "datasets")
    fetched = fetch("hf://org/rows/a/1.jsonl", "data", places)
    assert fetched.path.read_bytes() == b"1"
    assert fetched.files == digest.of(fetched.path, "x", places.cache, lambda *_: None, lambda: None)
