"""Weights' files are looked at before anybody loads them, by their heads alone."""

import json
import struct
from pathlib import Path

import pytest
from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.model import weight_shapes

SOURCE = "pvc://models/m"


def save(file: Path, **shapes: list[int]) -> Path:
    """A safetensors file of zeros, four bytes each."""
    head, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **head}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return file


def sharded(folder: Path) -> Path:
    """Two weights in a file each."""
    for number, name in enumerate("ab", 1):
        save(folder / f"model-0000{number}-of-00002.safetensors", **{name: [2, 3]})
    places = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate("ab", 1)}
    (folder / weight_shapes.INDEX).write_text(json.dumps({"weight_map": places}))
    return folder


def test_whole_files_tell_their_shapes(tmp_path: Path) -> None:
    assert weight_shapes.of_model(sharded(tmp_path), SOURCE) == {"a": [2, 3], "b": [2, 3]}


@pytest.fixture(autouse=True)
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text("{}")
    return file


def test_a_file_that_the_config_names_is_the_one_that_counts(tmp_path: Path, config: Path) -> None:
    save(tmp_path / "tuned.safetensors", a=[2, 3])
    config.write_text('{"transformers_weights": "tuned.safetensors"}')
    assert weight_shapes.of_model(tmp_path, SOURCE) == {"a": [2, 3]}
    (sharded(tmp_path) / weight_shapes.INDEX).rename(tmp_path / "tuned.safetensors.index.json")
    config.write_text('{"transformers_weights": "tuned.safetensors.index.json"}')
    assert set(weight_shapes.of_model(tmp_path, SOURCE)) == {"a", "b"}


@pytest.mark.parametrize("cut", [4, 30, -1])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, cut: int) -> None:
    file = save(tmp_path / weight_shapes.SINGLE_FILE, a=[50, 50])
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InvalidSpec, match=r"pvc://models/m/model\.safetensors .*copy it again"):
        weight_shapes.of_model(tmp_path, SOURCE)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFound, match=r"1 of the 2 files .* are missing: model-00002-of-00002\.safetensors"):
        weight_shapes.of_model(tmp_path, SOURCE)


def test_a_shard_of_another_model_is_named(tmp_path: Path) -> None:
    save(sharded(tmp_path) / "model-00002-of-00002.safetensors", c=[2, 3])
    with pytest.raises(InvalidSpec, match=r"model-00002-of-00002\.safetensors does not hold b"):
        weight_shapes.of_model(tmp_path, SOURCE)


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    (sharded(tmp_path) / weight_shapes.INDEX).unlink()
    with pytest.raises(NotFound, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        weight_shapes.of_model(tmp_path, SOURCE)


def test_an_adapters_layers_have_inputs_ranks_and_outputs() -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {
        f"{name}.lora_A.weight": [4, 48],
        f"{name}.lora_B.weight": [96, 4],
        "base_model.model.lm_head.weight": [1],
    }
    assert weight_shapes.lora_layers(shapes) == {"model.layers.0.self_attn.q_proj": (48, 4, 96)}
