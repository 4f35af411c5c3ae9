"""Preparation knows every limit of a model that training would meet, in every stage, whatever the family calls it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import saved_adapter
from finetune_trainer.run import Run

from tests.trainer.support import families, stages, tiny

POSITIONS, LONG = 64, " gamma" * 150
BYTES = 259
"""Tokens of the tiny tokenizer that are a byte or special. Words have higher ids."""
Save = Callable[..., Path]
OF_EACH_STAGE = pytest.mark.parametrize("stage", stages.STAGES)
OF_EACH_FAMILY = pytest.mark.parametrize("family", families.FAMILIES)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a volume with a model, or finds a volume that was made with the same arguments."""
    made: dict[str, Path] = {}

    def volume(family: str, *, eos: bool = True, vocabulary: int | None = None) -> Path:
        key = f"{family}-{eos}-{vocabulary}"
        if key not in made:
            tokens = tiny.tokenizer()
            if not eos:
                tokens.eos_token = None
            made[key] = tmp_path_factory.mktemp(family)
            families.save_model(
                made[key] / "model", family, tokens=tokens, positions=POSITIONS, vocabulary=vocabulary or len(tokens)
            )
        return made[key]

    return volume


def rows(stage: str, *, long: bool) -> list[dict[str, Any]]:
    """Four rows of the stage; ``long``: and one of over 150 tokens, of the answer if the stage reads any."""
    made = [stages.row(stage, index) for index in range(4)]
    if long:
        place = "say beta" if stage == "ppo" else "(?<!say )beta"
        made.append(json.loads(re.sub(place, f"say beta{LONG}", json.dumps(made[1]))))
    return made


def prepared(root: Path, volume: Path, stage: str, *, long: bool = False, **sections: Any) -> Run:
    """The run of a job of the stage on the model of a volume, as far as preparation. A service scores its answers."""
    if not (root / "models").exists():
        (root / "models").symlink_to(volume)
    stages.save(root / "data" / f"{stage}.jsonl", rows(stage, long=long))
    training = {"cutoffLength": None, "maxSteps": 1, **sections.pop("training", {})}
    if stage == "ppo":
        sections["ppo"] = {"rewardModel": {"http": {"url": "http://rewards/score"}}, **sections.get("ppo", {})}
    return tiny.make_run(root, stages.job(stage, "lora", training=training, **sections))


@OF_EACH_STAGE
@OF_EACH_FAMILY
def test_a_row_beyond_the_positions_is_refused_and_as_many_are_not(
    tmp_path: Path, models: Save, family: str, stage: str
) -> None:
    field = families.FAMILIES[family][1]
    if field is None:  # alibi
        assert prepared(tmp_path, models(family), stage, long=True).prepared.summary.rows >= 5
        return
    for cutoff in (None, 200 if stage == "ppo" else POSITIONS + 1):
        with pytest.raises(InvalidSpec) as refused:
            prepared(tmp_path, models(family), stage, long=True, training={"cutoffLength": cutoff})
        found = str(refused.value)
        assert found.startswith("training.cutoffLength: rows have up to ")
        assert f"the model supports {POSITIONS} ({field} in its config.json). Set it to at most {POSITIONS}" in found
        assert ("ppo.maxNewTokens" in found) is (stage == "ppo")
    fits = prepared(tmp_path, models(family), stage, long=True, training={"cutoffLength": POSITIONS})
    assert fits.prepared.summary.rows >= 4


@OF_EACH_STAGE
@OF_EACH_FAMILY
def test_a_token_beyond_the_embeddings_is_refused(tmp_path: Path, models: Save, family: str, stage: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        prepared(tmp_path, models(family, vocabulary=BYTES), stage)
    found = str(refused.value)
    assert found.startswith("model.source: its tokenizer makes token ")
    assert f"the model has only {BYTES} tokens (vocab_size in its config.json)" in found
    assert "name it in model.newSpecialTokens" in found


@OF_EACH_STAGE
@OF_EACH_FAMILY
def test_a_missing_stop_token_is_refused(tmp_path: Path, models: Save, family: str, stage: str) -> None:
    with pytest.raises(InvalidSpec, match=r"model\.source: its .*Set eos_token in the"):
        prepared(tmp_path, models(family, eos=False), stage)


def test_a_full_pack_of_a_stream_must_fit_the_model_too(tmp_path: Path, models: Save) -> None:
    packed = {"packing": "wrapped", "cutoffLength": POSITIONS + 1}
    with pytest.raises(InvalidSpec, match=rf"up to {POSITIONS + 1} tokens.*With training\.packing wrapped"):
        prepared(tmp_path, models("gpt2"), "pt", long=True, training=packed)
    fits = prepared(tmp_path, models("gpt2"), "pt", long=True, training={**packed, "cutoffLength": POSITIONS})
    assert fits.prepared.summary.rows == 5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("use", ["ppo.rewardModel", "ppo.reference", "dpo.reference", "kto.reference"])
def test_another_model_of_the_job_must_fit_the_rows_too(tmp_path: Path, family: str, use: str) -> None:
    tokens, (stage, _, field) = tiny.tokenizer(), use.partition(".")
    enough = {"tokens": tokens, "positions": 4 * POSITIONS, "vocabulary": len(tokens)}
    volume = tmp_path / "volume"
    families.save_model(volume / "model", family, **enough)

    def run(**other: Any) -> Run:
        families.save_model(volume / "other", family, reward=field == "rewardModel", **enough | other)
        own = {"rewardModel": {"http": {"url": "http://rewards/score"}}} if use == "ppo.reference" else {}
        sections: dict[str, Any] = {stage: {**own, field: {"source": "pvc://models/other"}}}
        return prepared(tmp_path, volume, stage, **sections)

    with pytest.raises(InvalidSpec) as refused:
        run(positions=10)
    assert str(refused.value).startswith(f"{use}: rows have up to ")
    said = f"supports 10 ({families.FAMILIES[family][1]} in its config.json). Set training.cutoffLength to at most 10"
    assert said in str(refused.value)
    with pytest.raises(InvalidSpec, match=rf"{use}: the job's rows have token .* has only {BYTES} tokens"):
        run(vocabulary=BYTES)
    assert run().prepared.summary.rows == 4


def test_tokens_that_the_weights_lack_can_be_added_by_name(tmp_path: Path) -> None:
    tokens, volume = tiny.tokenizer(tiny.CHATML.replace("<|im_start|>", "<new>")), tmp_path / "volume"
    known = len(tokens)
    tokens.add_tokens(["<new>"], special_tokens=True)
    families.save_model(volume / "model", "bloom", tokens=tokens, positions=POSITIONS, vocabulary=known)
    with pytest.raises(InvalidSpec, match=r"token \d+ \('<new>'\).* name it in model\.newSpecialTokens"):
        prepared(tmp_path, volume, "sft")
    run = prepared(tmp_path, volume, "sft", model={"source": "pvc://models/model", "newSpecialTokens": ["<new>"]})
    stages.train(run)
    assert saved_adapter.embedding_rows(run.folders.artifact) == known + 1


@pytest.mark.parametrize(
    "said", ["{{ message.content }}</s>", "{{ message.content }}{% if message.role[0] == 'a' %}</s>{% endif %}"]
)
def test_a_prompt_whose_answer_cannot_end_is_refused(tmp_path: Path, said: str) -> None:
    """Stage ppo reads prompts alone, which may have no stop token: the template has it, and the weights may not."""
    tokens, volume = tiny.tokenizer("{% for message in messages %}" + said + "{% endfor %}"), tmp_path / "volume"
    tokens.add_tokens(["</s>"], special_tokens=True)
    last = len(tokens) - 1
    families.save_model(volume / "model", "gpt2", tokens=tokens, positions=POSITIONS, vocabulary=last)
    with pytest.raises(InvalidSpec, match="does not end with a token that stops generation"):
        prepared(tmp_path, volume, "ppo")
    tokens.eos_token = "</s>"
    tokens.save_pretrained(volume / "model")
    with pytest.raises(InvalidSpec, match=rf"makes token {last} \('</s>'\), but the model has only {last} tokens"):
        prepared(tmp_path, volume, "ppo")


@pytest.mark.parametrize("stage", [stage for stage in stages.STAGES if stage != "pt"])
def test_a_template_that_never_writes_a_stop_token_is_refused(tmp_path: Path, stage: str) -> None:
    tokens = tiny.tokenizer("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}")
    families.save_model(
        tmp_path / "volume" / "model", "llama", tokens=tokens, positions=POSITIONS, vocabulary=len(tokens)
    )
    with pytest.raises(InvalidSpec, match=r"model\.source: its chat template .*stop tokens .*'<\|im_end\|>'.*Set eos_"):
        prepared(tmp_path, tmp_path / "volume", stage)
