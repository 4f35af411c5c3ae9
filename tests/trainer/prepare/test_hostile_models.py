"""Models, adapters and templates of strangers: preparation loads them, or it ends with an error for the user, whatever
their files hold. It never ends with an internal error, runs no code of theirs, and is bounded in time and memory.

Hypothesis replaces, removes and adds values in every JSON file, and bytes in the headers of weights.
"""

import copy
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import ResolvedJob
from finetune_api.data import TemplateSpec
from finetune_api.exit_codes import ExitCode
from finetune_trainer.data.templates import ChatTemplate
from finetune_trainer.errors import AccessDenied, InvalidSpec, NotFound
from finetune_trainer.fetch import Fetched
from finetune_trainer.model import weight_shapes
from finetune_trainer.prepare import model_check
from finetune_trainer.prepare.pipeline import load_tokenization
from finetune_trainer.runtime import bounds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer.support import tiny

EXAMPLES = settings(
    max_examples=int(os.environ.get("FINETUNE_FUZZ", "25")),
    deadline=None,
    database=None,
    derandomize=not os.environ.get("FINETUNE_FUZZ"),
    suppress_health_check=list(HealthCheck),
)
TOLD = (InvalidSpec, NotFound, AccessDenied)
"""Errors for the user. Their exit codes end the job, and no attempt follows."""
DEEP = "[" * 100_000
JUNK: list[Any] = [
    *("", "x", "../../etc/passwd", "/dev/zero", "a" * 5000, "(a+)+$", "os.system", "\ud800"),
    *(0, -1, 1, 3, 2**31, 2**63, 10**30, 1.5, float("nan"), float("inf")),
    *(None, True, False, [], [None], ["x"], [[0, 10**9]], {}, {"a": "b"}, {"auto_map": {"AutoConfig": "evil.Evil"}}),
]
NAMES = [
    "auto_map",
    "quantization_config",
    "text_config",
    "rope_scaling",
    "rope_parameters",
    "num_hidden_layers",
    "layer_types",
]
CODE = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"
LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "model",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {},
    "modules_to_save": None,
}


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [place for name, part in inner for place in ((*here, name), *paths(part, (*here, name)))]


@st.composite
def spoiled(draw: st.DrawFn, content: Any) -> Any:
    """The content with up to three values replaced, removed or added."""
    made = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = paths(made)
        if not places:
            break
        # As likely near the top as deep inside: a tokenizer.json has thousands of entries.
        depth = draw(st.integers(1, max(map(len, places))))
        *path, last = draw(st.sampled_from([place for place in places if len(place) <= depth]))
        where = made
        for step in path:
            where = where[step]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "remove":
            del where[last]
        elif change == "add" and isinstance(where, dict):
            where[draw(st.sampled_from(NAMES))] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        else:
            where[last] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    return made


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, with code beside it that must never run, and an adapter of it."""
    import torch
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("honest")
    model = tiny.save_model(root / "model")
    (model / "evil.py").write_text(CODE)
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(LORA))
    layer = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
    weights = {}
    for number in range(2):
        for name, width in (("q_proj", 48), ("v_proj", 24)):
            weights[layer.format(number, name, "A")] = torch.zeros(4, 48)
            weights[layer.format(number, name, "B")] = torch.zeros(width, 4)
    save_file(weights, adapter / "adapter_model.safetensors")
    return root


@pytest.fixture(scope="module")
def place(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to spoil. `restored` undoes it."""
    folder = tmp_path_factory.mktemp("spoiled") / "root"
    shutil.copytree(honest, folder)
    return folder


JOB = tiny.job()
WITH_ADAPTER = tiny.job(tuning={"method": "lora", "adapter": {"source": "pvc://models/adapter", "mode": "continue"}})


def prepare(job: ResolvedJob, folder: Path) -> int:
    """What preparation does with models, up to the first row; how many tokens that has."""
    adapter = folder / "adapter" if job.tuning.adapter else None
    model_check.check_model(job, folder / "model", adapter)
    fetched = Fetched(job.model.source, folder / "model", {"config.json": "digest"}, None)
    tokenization, _ = load_tokenization(job, fetched)
    template = tokenization.template
    assert template is not None
    template.facts()
    messages = tiny.conversation(0)["messages"]
    return sum(len(template.ids(row.text)) for row in template.render_rows(messages, []))


def is_told(job: ResolvedJob, folder: Path) -> bool:
    """Whether it is prepared, or refused as a user's mistake, and no code of the model ran."""
    from finetune_trainer.data.samples import RowError
    from finetune_trainer.data.templates.tokenizer_template import TemplateMismatch

    refusal = None
    try:
        prepare(job, folder)
    except TOLD as error:
        refusal = error
    except (RowError, TemplateMismatch):
        pass  # the row is reported as invalid
    mistakes = (ExitCode.INVALID_SPEC, ExitCode.NOT_FOUND, ExitCode.ACCESS_DENIED)
    told = refusal is None or (refusal.exit_code in mistakes and len(str(refusal)) > 20)
    return told and not list(folder.rglob("ran"))


def write(file: Path, content: Any) -> bytes:
    before = file.read_bytes()
    file.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
    return before


def test_the_honest_model_and_adapter_are_prepared(honest: Path) -> None:
    for job in (JOB, WITH_ADAPTER):
        assert prepare(job, honest) > 0


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
def test_a_strange_file_of_a_model(place: Path, name: str) -> None:
    file = place / "model" / name
    honest_content = json.loads(file.read_text())

    @EXAMPLES
    @given(content=spoiled(honest_content))
    def run(content: Any) -> None:
        before = write(file, content)
        try:
            assert is_told(JOB, place)
        finally:
            file.write_bytes(before)

    run()


def test_a_strange_adapter(place: Path) -> None:
    file = place / "adapter" / "adapter_config.json"

    @EXAMPLES
    @given(content=spoiled(LORA))
    def run(content: Any) -> None:
        before = write(file, content)
        try:
            assert is_told(WITH_ADAPTER, place)
        finally:
            file.write_bytes(before)

    run()


@pytest.mark.parametrize("name", ["model/model.safetensors", "adapter/adapter_model.safetensors"])
def test_a_strange_header_of_weights(place: Path, name: str) -> None:
    file = place / name
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])

    @EXAMPLES
    @given(content=spoiled(header), claimed=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
    def run(content: Any, claimed: int | None) -> None:
        text = json.dumps(content).encode("utf-8", "surrogatepass")
        file.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + raw[8 + length :])
        try:
            assert is_told(WITH_ADAPTER, place)
        finally:
            file.write_bytes(raw)

    run()


@pytest.mark.parametrize(
    "name", ["model/config.json", "model/tokenizer_config.json", "model/tokenizer.json", "adapter/adapter_config.json"]
)
@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "", "null", "[]", "\x00", "{", "9" * 5000])
def test_a_file_that_is_no_object(place: Path, name: str, text: str) -> None:
    file = place / name
    before = file.read_bytes()
    file.write_text(text)
    try:
        assert is_told(WITH_ADAPTER, place)
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 10**9},
        {"num_labels": 10**9},
        {"num_hidden_layers": 10**9, "layer_types": []},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"num_experts": 10**9, "model_type": "qwen3_moe"},
        {"num_attention_heads": 10**9},
    ],
    ids=str,
)
def test_a_config_of_a_model_that_would_fill_the_memory(place: Path, settings: dict[str, Any]) -> None:
    file = place / "model" / "config.json"
    before = write(file, {**json.loads(file.read_text()), **settings})
    try:
        with pytest.raises(InvalidSpec, match="its files have only"):
            prepare(JOB, place)
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 10**9}, "the rank 1000000000"),
        ({"rank_pattern": {"q_proj": 10**9}}, "the rank 1000000000"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication"),
        ({"target_modules": "(((m|o|d|e|l|.)+)+)+!"}, "takes more than"),
        ({"exclude_modules": "("}, "a pattern that can't be used"),
    ],
    ids=str,
)
def test_an_adapter_that_would_fill_the_memory_or_never_end(
    place: Path, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 1.0)
    file = place / "adapter" / "adapter_config.json"
    before = write(file, {**LORA, **changes})
    try:
        with pytest.raises(InvalidSpec, match=words):
            prepare(WITH_ADAPTER, place)
    finally:
        file.write_bytes(before)


def test_an_index_may_not_name_files_elsewhere(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(place / "model", folder)
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    (folder / "a.safetensors").touch()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidSpec, match="no file of the model's folder"):
        weight_shapes.of_model(folder, "pvc://models/model")


BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 99999999999 }}",
    "a doubling text": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a wide field": "{{ 'a'.center(99999999999) }}",
    "a list": "{{ ([0] * 99999999999) | length }}",
    "a recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a power": "{{ 10 ** 10 ** 10 }}",
    "deep brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}
ESCAPES = {
    "classes": "{{ ().__class__.__base__.__subclasses__() }}",
    "a function's globals": "{{ raise_exception.__globals__['os'].system('touch ran') }}",
    "the environment": "{{ self._TemplateReference__context.environment }}",
    "a format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "an import": "{% import 'os' as os %}",
    "an include": "{% include '/etc/passwd' %}",
    "a change of the row": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("template", BOMBS.values(), ids=list(BOMBS))
def test_a_template_that_never_ends_or_fills_the_memory(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.data.templates.tokenizer_template import TemplateMismatch

    monkeypatch.setattr(bounds, "SECONDS", 1.0)
    monkeypatch.setattr(bounds, "BYTES", 1 << 29)

    def use() -> None:
        chat = ChatTemplate(tiny.tokenizer(tiny.CHATML + template), frozenset({2}), TemplateSpec())
        chat.render_rows(tiny.conversation(0)["messages"], [])

    with pytest.raises((InvalidSpec, TemplateMismatch)):
        use()
    ChatTemplate(tiny.tokenizer(), frozenset({2}), TemplateSpec())  # the limits are lifted again


@pytest.mark.parametrize("template", ESCAPES.values(), ids=list(ESCAPES))
def test_a_template_that_wants_out(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.data.templates.tokenizer_template import TemplateMismatch

    monkeypatch.chdir(tmp_path)
    messages = tiny.conversation(0)["messages"]
    before = copy.deepcopy(messages)
    try:
        chat = ChatTemplate(tiny.tokenizer(template + tiny.CHATML), frozenset({2}), TemplateSpec())
        text = "".join(row.text for row in chat.render_rows(messages, []))
        assert not any(word in text for word in ("class '", "root:", "Environment"))
    except (InvalidSpec, TemplateMismatch):
        pass
    assert messages == before
    assert not list(tmp_path.iterdir())
