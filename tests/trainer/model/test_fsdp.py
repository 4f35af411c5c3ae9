"""``training.parallelism: fsdp``: a sharded model trains like the whole model, and gives the same artifact."""

from pathlib import Path
from typing import Any

import pytest
from finetune_api.exit_codes import ExitCode
from finetune_trainer.run import Run
from safetensors.torch import load_file

from tests.trainer.support import fsdp_cpu, tiny
from tests.trainer.support.forge import Forge

CLOSE = 1e-6
METHODS: dict[str, dict[str, Any]] = {
    "full": {"tuning": {"method": "full"}},
    # The head is trained whole, though the fused loss reads it without calling it; dropout and recomputation agree.
    "lora": {
        "tuning": {"method": "lora", "lora": {"modulesToSave": ["lm_head"], "dropout": 0.1}},
        "training": {"recompute": "all"},
    },
    "freeze": {"tuning": {"method": "freeze", "freeze": {"layers": 1}}},
}


def job(how: str, spec: dict[str, Any], **training: Any) -> Any:
    settings = {"parallelism": how, "microBatchSize": 2, "maxSteps": 4, **spec.get("training", {}), **training}
    return tiny.job(**{**spec, "training": settings})


def run_of(root: Path, resolved: Any, workspace: str) -> Run:
    return tiny.make_run(root, resolved, workspace=workspace)


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    """As ``root``, with a model whose head is no embedding, and an epoch that is not a whole number of steps."""
    tiny.save_model(tmp_path / "models" / "model", tie_word_embeddings=False)
    tiny.save_rows(tmp_path / "data" / "rows.jsonl", rows=21)
    return tmp_path


@pytest.mark.parametrize("method", METHODS)
def test_a_sharded_model_trains_like_the_whole_and_gives_the_same_artifact(
    untied: Path, forge: Forge, method: str
) -> None:
    whole, shared = job("ddp", METHODS[method]), job("fsdp", METHODS[method])
    by_ddp = fsdp_cpu.train(forge, untied, whole, 2, "ddp")
    by_fsdp = fsdp_cpu.train(forge, untied, shared, 2, "fsdp")
    assert [rank.sharded for rank in by_ddp] == [False, False]
    assert [rank.sharded for rank in by_fsdp] == [True, True]
    assert by_fsdp[0].steps == by_ddp[0].steps
    assert by_fsdp[0].dtypes == {"torch.float32"}

    first, second = run_of(untied, whole, "ddp"), run_of(untied, shared, "fsdp")
    assert len(tiny.losses(first)) == 4
    assert tiny.losses(second) == pytest.approx(tiny.losses(first), abs=CLOSE)
    names = sorted(path.name for path in first.folders.artifact.iterdir())
    assert sorted(path.name for path in second.folders.artifact.iterdir()) == names
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    expected, actual = load_file(first.folders.artifact / file), load_file(second.folders.artifact / file)
    assert list(actual) == list(expected)
    assert all(actual[name].dtype == weight.dtype for name, weight in expected.items())
    assert max(float((actual[name] - weight).abs().max()) for name, weight in expected.items()) < 1e-5
    config = "adapter_config.json" if method == "lora" else "config.json"
    assert (second.folders.artifact / config).read_text() == (first.folders.artifact / config).read_text()


def steps_of(ranks: list[fsdp_cpu.Rank]) -> dict[int, list[tuple[int, ...]]]:
    """Step -> the rows that all ranks trained."""
    return {step: sorted(row for rank in ranks for row in rank.steps[step]) for step in ranks[0].steps}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_shards_of_two_ranks_resume_on_one_rank_and_on_two_again(root: Path, forge: Forge, method: str) -> None:
    tiny.save_rows(root / "data" / "rows.jsonl", rows=21)  # steps 3 and 6 are filled up
    spec = {"tuning": {"method": method}}
    resolved = job("fsdp", spec, maxSteps=7, groupByLength=True)
    straight = fsdp_cpu.train(forge, root, resolved, 1, "straight", micro_batch=4)
    assert [rank.sharded for rank in straight] == [True]

    first = fsdp_cpu.train(forge, root, resolved, 2, "resumed", stop_after=2)
    second = fsdp_cpu.train(forge, root, resolved, 1, "resumed", attempt=2, micro_batch=8, stop_after=4)
    third = fsdp_cpu.train(forge, root, resolved, 2, "resumed", attempt=3)
    assert [list(steps_of(ranks)) for ranks in (first, second, third)] == [[1, 2, 3], [4, 5], [6, 7]]
    assert steps_of(first) | steps_of(second) | steps_of(third) == steps_of(straight)
    expected = tiny.losses(run_of(root, resolved, "straight"))
    assert len(expected) == 7
    assert tiny.losses(run_of(root, resolved, "resumed")) == pytest.approx(expected, abs=CLOSE)


def test_bf16_keeps_trained_weights_in_fp32_and_evaluates_like_the_whole(root: Path, forge: Forge) -> None:
    spec = {"tuning": {"method": "lora"}, "evaluation": {"splitFraction": 0.2}}
    whole, shared = (job(how, spec, precision="bf16", maxSteps=2) for how in ("ddp", "fsdp"))
    fsdp_cpu.train(forge, root, whole, 2, "ddp")
    ranks = fsdp_cpu.train(forge, root, shared, 2, "fsdp")
    assert [(rank.sharded, rank.dtypes) for rank in ranks] == [(True, {"torch.float32"})] * 2
    for name in ("loss", "eval_loss"):
        expected = tiny.logged(run_of(root, whole, "ddp"), name)
        assert expected
        assert tiny.logged(run_of(root, shared, "fsdp"), name) == pytest.approx(expected, rel=5e-3)


def test_without_a_gpu_fsdp_is_refused_and_not_replaced_by_ddp(root: Path, forge: Forge) -> None:
    resolved = job("fsdp", {"tuning": {"method": "lora"}})
    run_of(root, resolved, "work")
    child = forge.start(fsdp_cpu.refused, root, resolved, log=root / "log")
    assert child.wait() == ExitCode.INVALID_SPEC, child.log.read_text()
    assert child.received == ["training.parallelism: fsdp needs GPUs, and none is visible here. Use ddp"]
