"""The files of a data set, and the errors for folders that are ambiguous."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from finetune_api.data import DatasetSpec
from finetune_trainer.data.files import data_files
from finetune_trainer.errors import InvalidSpec, NotFound


def spec(source: str = "pvc://data/set", **settings: Any) -> DatasetSpec:
    return DatasetSpec.model_validate({"source": source, "format": "text", **settings})


def folder(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def chosen(root: Path, names: list[str], **settings: Any) -> list[str]:
    return [file.name for file in data_files(folder(root, names), spec(**settings))]


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.json", "json", None),
        ("a.b.jsonl", "jsonl", None),
        ("A.JSONL.GZ", "jsonl", "gz"),
        ("a.csv.bz2", "csv", "bz2"),
        ("a.txt.xz", "txt", "xz"),
        ("a.parquet.zst", "parquet", "zst"),
        ("dataset_info.arrow", "arrow", None),
        ("README.txt", "txt", None),
    ],
)
def test_a_single_file(tmp_path: Path, name: str, kind: str, compression: str | None) -> None:
    (tmp_path / name).touch()
    [file] = data_files(tmp_path / name, spec())
    assert (file.path, file.name, file.kind, file.compression) == (tmp_path / name, name, kind, compression)
    assert pickle.loads(pickle.dumps(file)) == file


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.gz", "a.jsonl.zip"])
def test_a_file_of_unknown_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(
        InvalidSpec, match=r"extension.* A data file is \.json, \.jsonl, .* or \.txt, also compressed \(\.gz, "
    ):
        data_files(tmp_path / name, spec())


def test_the_data_files_of_a_folder_are_sorted_by_name(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.jsonl.gz", "c/d.jsonl", "README.md", "dataset_infos.json", ".hidden.jsonl", ".cache/x.jsonl"]
    assert chosen(tmp_path, [*names, "LICENSE.txt", "x.py"]) == ["a.jsonl.gz", "b.jsonl", "c/d.jsonl"]


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train.csv", "test.csv"], None, ["train.csv"]),
        (["train.csv", "valid.csv"], "validation", ["valid.csv"]),
        (["train.csv", "val.csv"], "dev", ["val.csv"]),
        (["train/a.csv", "test/a.csv"], None, ["train/a.csv"]),
        (["train/data-00000-of-00001.arrow", "test/b.arrow"], None, ["train/data-00000-of-00001.arrow"]),
        (
            [f"data/{name}-00000-of-00002.csv" for name in ("a_sft", "b_sft")],
            "a_sft",
            ["data/a_sft-00000-of-00002.csv"],
        ),
        (["en-train.00000-of-00002.json.gz", "en-valid.json.gz"], None, ["en-train.00000-of-00002.json.gz"]),
        (["easy.jsonl", "hard.jsonl"], None, ["easy.jsonl", "hard.jsonl"]),
        (["easy.jsonl", "hard.jsonl"], "hard", ["hard.jsonl"]),
        (["easy/a.jsonl", "hard/b.jsonl"], "easy", ["easy/a.jsonl"]),
        (["test-questions.jsonl"], None, ["test-questions.jsonl"]),
        (["train.jsonl", "more.jsonl"], "train", ["train.jsonl"]),
    ],
)
def test_splits(tmp_path: Path, names: list[str], split: str | None, expected: list[str]) -> None:
    assert chosen(tmp_path, names, **({"split": split} if split else {})) == expected


@pytest.mark.parametrize(
    ("names", "settings", "words"),
    [
        (["a.csv", "b.jsonl"], {}, "files of several kinds, csv, jsonl (a.csv, b.jsonl). Name a file"),
        (
            ["a.py", "README.md"],
            {},
            "the folder has no data file. It has: README.md, a.py. A data file is .json, .jsonl",
        ),
        (["train.csv", "test.csv"], {"split": "validation"}, "no split 'validation'. It has the splits test, train"),
        (["a.csv"], {"split": "train"}, "no split 'train'. It has no splits, only a.csv"),
        (
            ["train_a-00000-of-00001.csv", "train_b-00000-of-00001.csv"],
            {},
            "has the splits train_a, train_b. Name a split in split",
        ),
        (["train.csv", "more.csv"], {}, "has the splits train, and files of no split: more.csv. Name a split in split"),
        (["a/x.csv"], {"subset": "b"}, "has no folder 'b', which subset names"),
    ],
)
def test_ambiguous_folders_are_rejected(tmp_path: Path, names: list[str], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpec) as error:
        chosen(tmp_path, names, **settings)
    assert words in str(error.value)


def test_subsets_are_folders(tmp_path: Path) -> None:
    names = [
        "main/train-00000-of-00001.parquet",
        "main/test-00000-of-00001.parquet",
        "other/train-00000-of-00001.parquet",
    ]
    assert chosen(tmp_path, names, subset="main") == ["main/train-00000-of-00001.parquet"]


def test_a_hub_defines_its_subsets_by_itself(tmp_path: Path) -> None:
    assert chosen(tmp_path, ["en.jsonl"], source="hf://a/b", subset="english") == ["en.jsonl"]


def test_a_file_of_another_split(tmp_path: Path) -> None:
    (tmp_path / "test.csv").touch()
    with pytest.raises(InvalidSpec, match="is split 'test' by its name, and the data set's split is 'train'"):
        data_files(tmp_path / "test.csv", spec(split="train"))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="pvc://data/set: the folder is empty"):
        data_files(tmp_path, spec())


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").touch()
    inside = folder(tmp_path / "set", ["a.txt"])
    (inside / "b.txt").symlink_to("a.txt")
    assert [file.name for file in data_files(inside, spec())] == ["a.txt", "b.txt"]
    (inside / "c.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InvalidSpec, match=r"c\.txt is a link to a file outside the data set's folder"):
        data_files(inside, spec())
