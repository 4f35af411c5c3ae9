"""Answers in batches equal those to single prompts, and the model is restored afterwards."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.generation import batched
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from tests.trainer.support import tiny
from tests.trainer.support.forge import Forge, send

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40], [60, 61, 62], [30, 31, 32, 33, 34], [90, 17]]
LENGTH = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights so different that answers differ."""
    return tiny.save_model(tmp_path_factory.mktemp("wide") / "model", initializer_range=0.4)


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def answers(model: Any, prompts: list[list[int]] = PROMPTS, **settings: Any) -> list[list[int]]:
    chosen = {"max_new_tokens": LENGTH, "stop_ids": [], "pad_id": 0, "batch_size": 3, **settings}
    return batched.generate(model, prompts, **chosen)


def step_by_step(model: Any, prompt: list[int]) -> list[int]:
    """Without a cache, padding or a batch."""
    ids = list(prompt)
    model.eval()
    with torch.no_grad():
        for _ in range(LENGTH):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_each_prompt_is_answered_as_if_it_were_alone(model: Any) -> None:
    alone = [step_by_step(model, prompt) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in alone}) == len(PROMPTS)
    assert answers(model) == alone


def test_an_answer_ends_with_its_first_stop_token(model: Any) -> None:
    whole = [step_by_step(model, prompt) for prompt in PROMPTS]
    stop = whole[1][3]
    ended = [answer[: answer.index(stop) + 1] if stop in answer else answer for answer in whole]
    assert len(ended[1]) < LENGTH
    assert max(map(len, ended)) == LENGTH
    assert answers(model, stop_ids=[stop]) == ended
    assert answers(model, stop_ids=[stop], pad_id=stop) == ended  # as many tokenizers have it


def test_a_models_own_generation_settings_change_nothing(model: Any) -> None:
    plain = answers(model)
    model.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=5.0, min_new_tokens=20)
    assert answers(model) == plain
    assert model.generation_config.repetition_penalty == 5.0


def test_an_adapter_is_used_in_generation(model: Any) -> None:
    without = answers(model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    alone = [step_by_step(adapted, prompt) for prompt in PROMPTS]
    assert alone != without
    assert answers(adapted) == alone


def test_a_model_in_training_mode_is_restored(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.config.use_cache = False
    model.activation_checkpointing_enable()
    model.train()
    model.lm_head.eval()  # somebody froze it
    recorded = widths(model, monkeypatch)
    answers(model, [[5, 6, 7]])
    assert recorded == [3] + [1] * (LENGTH - 1)  # one new token each: what came before is in the cache
    assert model.training
    assert model.model.layers[0].training
    assert model.model.layers[0].gradient_checkpointing
    assert not model.lm_head.training
    assert model.config.use_cache is False
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert model.model.embed_tokens.weight.grad is not None


def test_the_model_is_restored_after_an_error(model: Any) -> None:
    settings = model.generation_config
    model.train()
    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers(model)
    assert model.training
    assert model.generation_config is settings


def test_processors_get_the_prompts_of_their_rows(model: Any) -> None:
    """Processors make prompt n answer n, n + 1, ..., whatever its batch: noise keyed by row and position needs that."""

    class Counting(LogitsProcessor):
        def __init__(self, rows: list[int], width: int) -> None:
            self.rows, self.width = rows, width

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            at = input_ids.shape[1] - self.width
            return torch.nn.functional.one_hot(torch.tensor(self.rows) + at, scores.shape[1]).float()

    def processors(rows: list[int], width: int) -> LogitsProcessorList:
        return LogitsProcessorList([Counting(rows, width)])

    counted = [list(range(row, row + LENGTH)) for row in range(len(PROMPTS))]
    assert answers(model, processors=processors, batch_size=2) == counted
    assert answers(model, processors=processors, batch_size=5) == counted


def test_a_batch_that_runs_out_of_memory_is_split(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, generate_of, tried = answers(model), model.generate, []

    def tight(**inputs: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate_of(**inputs)

    monkeypatch.setattr(model, "generate", tight)
    assert answers(model, batch_size=4) == whole
    assert tried == [4, 2, 1, 1, 1, 1, 1]


def test_a_sharded_model_answers_like_the_whole(folder: Path, tmp_path: Path, forge: Forge) -> None:
    """Two ranks with unequal work and adapters: each takes part in gathering, also after its own prompts are done."""
    stop = answers(_adapted(folder), PROMPTS[:1])[0][1]
    whole = answers(_adapted(folder), stop_ids=[stop])
    assert len(whole[0]) == 2
    assert max(map(len, whole)) == LENGTH
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shares = [PROMPTS, PROMPTS[:1]]
    ranks = [
        forge.start(_share, folder, share, stop, log=tmp_path / f"{rank}.log", **meeting, RANK=str(rank))
        for rank, share in enumerate(shares)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.log.read_text() for rank in ranks]
    assert [rank.received for rank in ranks] == [[whole], [whole[:1]]]


def _adapted(folder: Path) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)


def _share(folder: Path, prompts: list[list[int]], stop: int) -> int:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    model = _adapted(folder)
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    send(answers(model, prompts, batch_size=2, stop_ids=[stop]))
    distributed.destroy_process_group()
    return 0


def widths(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the number of tokens in each forward pass."""
    recorded: list[int] = []
    original = model.model.forward

    def forward(*args: Any, **inputs: Any) -> Any:
        recorded.append(inputs["input_ids"].shape[1])
        return original(*args, **inputs)

    monkeypatch.setattr(model.model, "forward", forward)
    return recorded
