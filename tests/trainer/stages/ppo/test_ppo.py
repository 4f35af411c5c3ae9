"""Stage ppo as a whole, on the tiny model and a tiny reward model."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from finetune_api.exit_codes import ExitCode
from finetune_api.status import Progress
from finetune_trainer.errors import Preempted
from finetune_trainer.run import Run
from finetune_trainer.stages.ppo import workflow
from finetune_trainer.stages.ppo.collector import RolloutCollector
from finetune_trainer.stages.ppo.reward_service import RewardClient
from finetune_trainer.stages.ppo.samples import SampleTable
from finetune_trainer.stages.ppo.trainer import PpoTrainer
from safetensors.torch import load_file

from tests.trainer.checkpoints.test_exact import Sharded, sharded
from tests.trainer.support import stages, tiny
from tests.trainer.support.attempt import Series, recorded
from tests.trainer.support.forge import Forge

CLOSE = 1e-5


@pytest.fixture
def root(stage_root: Path) -> Path:
    return stage_root


@dataclass
class Service:
    """Scores a text by its share of vowels, or refuses every request."""

    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def reward_service(status: int = 200) -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
            service.asked += texts
            self.send_response(status)
            self.end_headers()
            scores = [sum(letter in "aeiou" for letter in text) / len(text) for text in texts]
            self.wfile.write(json.dumps({"scores": scores}).encode())

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service = Service(f"http://127.0.0.1:{server.server_address[1]}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()


def make_run(root: Path, workspace: str = "work", method: str = "lora", **sections: Any) -> Run:
    return tiny.make_run(root, stages.job("ppo", method, **sections), workspace=workspace)


@pytest.mark.parametrize(
    ("method", "precision", "close"), [("lora", "fp32", 1e-6), ("full", "fp32", 1e-6), ("lora", "bf16", 0.1)]
)
def test_the_policy_equals_its_reference_and_its_old_self_before_the_first_step(
    root: Path, method: str, precision: str, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each micro-batch of the first step, divergence is 0 and the ratio is 1: to 1e-6, or up to rounding in bf16."""
    import torch
    from finetune_trainer.stages.ppo import policy_outputs

    ratios: list[float] = []
    compute_loss = PpoTrainer.compute_loss

    def noted(self: PpoTrainer, model: Any, inputs: Any, **rest: Any) -> torch.Tensor:
        if self.state.global_step == 0:
            with torch.no_grad():
                ratios.extend((policy_outputs.forward(model, inputs).log_probs - inputs["log_probs"]).exp().tolist())
        return compute_loss(self, model, inputs, **rest)

    monkeypatch.setattr(PpoTrainer, "compute_loss", noted)
    tuning = {"method": "lora", "lora": {"dropout": 0.3}} if method == "lora" else {"method": "full"}
    run = make_run(root, training={"maxSteps": 2, "microBatchSize": 2, "precision": precision}, tuning=tuning)
    workflow.run(run)
    assert len(ratios) > 8
    assert ratios == pytest.approx([1.0] * len(ratios), abs=close)
    assert tiny.logged(run, "kl")[0] == pytest.approx(0.0, abs=1e-6)
    assert tiny.logged(run, "clip_fraction")[0] == 0


def test_logs_evaluations_samples_and_artifact_are_complete(root: Path) -> None:
    run = make_run(root, training={"maxSteps": 8}, evaluation={"splitFraction": 0.2, "everySteps": 4})
    outcome = workflow.run(run)
    for name in ("loss", "reward", "reward_normalized", "kl", "kl_coefficient", "policy_loss", "value_loss", "entropy"):
        assert len(tiny.logged(run, name)) == 8, name
    lengths, ended = tiny.logged(run, "answer_length"), tiny.logged(run, "eos_rate")
    assert all(1 <= length <= 8 for length in lengths)
    assert all(0 <= share <= 1 for share in ended)
    rewards = tiny.logged(run, "eval_reward")
    assert len(rewards) == 2
    assert tiny.logged(run, "eval_loss") == [-worth for worth in tiny.logged(run, "eval_reward_normalized")]
    samples = [json.loads(line) for line in (run.folders.reports / "samples.jsonl").read_text().splitlines()]
    assert {line["current_steps"] for line in samples} == {4, 8}
    assert samples[0]["prompt"].endswith("<|im_start|>assistant\n")
    assert {"answer", "reward"} <= set(samples[0])
    names = {file.name for file in run.folders.artifact.iterdir()}
    assert "adapter_model.safetensors" in names
    assert outcome.artifact.kind == "adapter"


@pytest.mark.parametrize(
    ("method", "training"),
    [("lora", {"precision": "bf16"}), ("full", {}), ("freeze", {"recompute": "all"}), ("qlora", {})],
)
def test_the_artifact_is_a_policy_without_a_value_head(root: Path, method: str, training: dict[str, Any]) -> None:
    from safetensors import safe_open

    run = make_run(root, method=method, training={"maxSteps": 1, **training})
    workflow.run(run)
    file = "adapter_model.safetensors" if "lora" in method else "model.safetensors"
    with safe_open(run.folders.artifact / file, framework="pt") as weights:
        names = list(weights.keys())
    assert names
    assert not [name for name in names if "value_head" in name or "ref" in name.split(".")]
    if "lora" in method:
        config = json.loads((run.folders.artifact / "adapter_config.json").read_text())
        assert not config["modules_to_save"]


def test_a_run_that_fails_within_a_rollout_resumes_bit_equal_and_calls_no_service_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is of the step before the second rollout. The run fails after the scores of that rollout."""

    def job(url: str) -> dict[str, Any]:
        return {
            "training": {"maxSteps": 8},
            "checkpoints": {"everySteps": 4},
            "ppo": {"rewardModel": {"http": {"url": url}}},
        }

    compute_loss = PpoTrainer.compute_loss

    def fails(self: PpoTrainer, *args: Any, **rest: Any) -> Any:
        if self.state.global_step == 5:
            raise RuntimeError("a fault")
        return compute_loss(self, *args, **rest)

    with reward_service() as service:
        straight = make_run(root, "straight", **job(service.url))
        workflow.run(straight)
        expected, service.asked = service.asked, []
        first = make_run(root, "failed", **job(service.url))
        monkeypatch.setattr(PpoTrainer, "compute_loss", fails)
        with pytest.raises(RuntimeError, match="a fault"):
            workflow.run(first)
        monkeypatch.setattr(PpoTrainer, "compute_loss", compute_loss)
        scores = root / "failed" / "jobs" / "tiny" / "scores"
        assert [file.name[:8] for file in scores.iterdir()] == ["00000004"]
        resolved = stages.job("ppo", "lora", **job(service.url))
        second = tiny.make_run(root, resolved, attempt=2, workspace="failed")
        workflow.run(second)

    assert len(expected) == 32
    assert service.asked == expected
    assert tiny.losses(second) == tiny.losses(straight)
    file = "adapter_model.safetensors"
    assert (second.folders.artifact / file).read_bytes() == (straight.folders.artifact / file).read_bytes()


def test_a_run_that_is_stopped_while_it_generates_saves_the_step_before(root: Path) -> None:
    sections: dict[str, Any] = {"training": {"maxSteps": 8}, "ppo": {"rewardNormalization": "running"}}
    straight = make_run(root, "straight", **sections)
    workflow.run(straight)

    stop = False

    def progress(report: Progress) -> None:
        nonlocal stop
        stop = report.step >= 4  # the last step of the first rollout

    first = replace(make_run(root, "cut", **sections), stop_requested=lambda: stop, report_progress=progress)
    with pytest.raises(Preempted, match="resumes from step 4 "):
        workflow.run(first)
    second = tiny.make_run(root, stages.job("ppo", "lora", **sections), attempt=2, workspace="cut")
    workflow.run(second)
    assert tiny.losses(second) == tiny.losses(straight)
    assert tiny.logged(second, "reward_normalized") == tiny.logged(straight, "reward_normalized")


def test_an_evaluation_that_is_stopped_while_a_service_scores_is_repeated(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An incomplete evaluation is not logged. The next attempt begins with it."""
    stop, asked = False, 0

    def of_its_length(self: RewardClient, texts: Sequence[str], check_stop: Any) -> list[float]:
        nonlocal stop, asked
        asked += 1
        stop = stop or asked == stops_at
        check_stop()
        return [len(text) / 10 for text in texts]

    monkeypatch.setattr(RewardClient, "score", of_its_length)
    sections: dict[str, Any] = {
        "training": {"maxSteps": 4, "microBatchSize": 2},
        "evaluation": {"splitFraction": 0.2, "everySteps": 2},
        "ppo": {"rewardModel": {"http": {"url": "http://nowhere"}}},
    }
    stops_at = 0
    straight = make_run(root, "straight", **sections)
    workflow.run(straight)
    asked, stops_at = 0, 3  # the rollout, a batch of the evaluation after step 2, and its next batch
    first = replace(make_run(root, "cut", **sections), stop_requested=lambda: stop)
    with pytest.raises(Preempted, match="resumes from step 2 "):
        workflow.run(first)
    assert not tiny.logged(first, "eval_reward")
    stop = False
    second = tiny.make_run(root, stages.job("ppo", "lora", **sections), attempt=2, workspace="cut")
    workflow.run(second)
    for name in ("eval_reward", "loss"):
        assert tiny.logged(second, name) == tiny.logged(straight, name)


def test_a_batch_that_is_evaluated_twice_adds_its_samples_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    sections: dict[str, Any] = {
        "training": {"maxSteps": 2, "microBatchSize": 4},
        "evaluation": {"splitFraction": 0.4, "everySteps": 2},
    }
    straight = make_run(root, "straight", **sections)
    workflow.run(straight)
    add, full = SampleTable.add, True

    def no_room(self: SampleTable, *args: Any) -> None:
        nonlocal full
        add(self, *args)
        if full:
            full = False
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SampleTable, "add", no_room)
    again = make_run(root, "again", **sections)
    workflow.run(again)
    assert not full
    lines, expected = (
        sorted(json.loads(line)["prompt"] for line in (run.folders.reports / "samples.jsonl").read_text().splitlines())
        for run in (again, straight)
    )
    assert lines == expected


def test_a_service_that_refuses_ends_all_ranks_with_its_reason(forge: Forge, root: Path, tmp_path: Path) -> None:
    with reward_service(status=403) as service:
        job = stages.job("ppo", "lora", ppo={"rewardModel": {"http": {"url": service.url}}})
        series = Series(forge, root, tmp_path / "refused", job)
        code = series.run(world=2, micro=4)
    assert code == ExitCode.ACCESS_DENIED, series.log
    assert "it requires a token, and none was sent" in series.result.message
    assert len(service.asked) == 16


def test_the_best_weights_are_merged_into_a_whole_model(root: Path) -> None:
    """The artifact is the policy of the evaluation with the highest reward, as a model that transformers loads."""
    import torch
    from transformers import AutoModelForCausalLM

    run = make_run(
        root,
        training={"maxSteps": 6, "learningRate": 0.05},
        evaluation={"splitFraction": 0.2, "everySteps": 2},
        output={"merge": True, "weights": "best"},
    )
    outcome = workflow.run(run)
    assert outcome.artifact.kind == "model"
    losses = tiny.logged(run, "eval_loss")
    assert float(outcome.metrics["evalLoss"]) == pytest.approx(min(losses), abs=CLOSE)
    policy: Any = AutoModelForCausalLM.from_pretrained(run.folders.artifact)
    with torch.no_grad():
        logits = policy(torch.tensor([[11, 12, 13]])).logits
    assert torch.isfinite(logits).all()


def test_a_sharded_policy_generates_and_learns_like_a_whole_one(forge: Forge, root: Path, tmp_path: Path) -> None:
    """FSDP, with a sharded second model as reference. The artifact has no value head."""
    series = {}
    for parallelism, install in (("ddp", recorded), ("fsdp", sharded)):
        job = stages.job("ppo", "full", training={"maxSteps": 4, "microBatchSize": 4, "parallelism": parallelism})
        series[parallelism] = Series(forge, root, tmp_path / parallelism, job, install)
        assert series[parallelism].run(world=2) == 0, series[parallelism].log
    assert set(series["fsdp"].events(Sharded)) == {Sharded(True)}
    for name in ("loss", "reward", "kl", "value_loss"):
        assert series["fsdp"].logged(name) == pytest.approx(series["ddp"].logged(name), abs=CLOSE), name
    names = [set(load_file(run.home / "artifact" / "model.safetensors")) for run in series.values()]
    assert names[0] == names[1]
    assert not [name for name in names[0] if "value_head" in name]


def test_a_reward_adapter_shares_the_base_of_the_policy(
    stage_volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The base is in memory once, and rewards are normalized by the statistics of stage rm."""
    (tmp_path / "data").symlink_to(stage_volumes / "data")
    shutil.copytree(stage_volumes / "models", tmp_path / "models")
    judge = tiny.make_run(tmp_path, stages.job("rm", "lora", training={"maxSteps": 2}), workspace="rm")
    stages.train(judge)
    shutil.copytree(judge.folders.artifact, tmp_path / "models" / "judge")
    settings = {"rewardModel": {"source": "pvc://models/judge"}, "rewardClip": 1000}
    run = make_run(tmp_path, training={"maxSteps": 1}, ppo=settings)
    with caplog.at_level("INFO"):
        workflow.run(run)
    assert "the reward model shares" in caplog.text
    measured = json.loads((judge.folders.artifact / "reward_statistics.json").read_text())
    ((raw,), (normal,)) = (tiny.logged(run, name) for name in ("reward", "reward_normalized"))
    unended = 1 - tiny.logged(run, "eos_rate")[0]
    assert normal + unended == pytest.approx((raw - measured["mean"]) / measured["std"], rel=1e-4)


def test_loading_the_best_weights_keeps_the_table_of_samples(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation is the best. In bf16, with a fully trained fp32 head."""
    asked = 0

    def always_less(self: RewardClient, texts: Sequence[str], check_stop: Any) -> list[float]:
        nonlocal asked
        asked += 1
        return [-float(asked)] * len(texts)

    monkeypatch.setattr(RewardClient, "score", always_less)
    run = make_run(
        root,
        tuning={"method": "lora", "lora": {"modulesToSave": ["lm_head"]}},
        training={"maxSteps": 4, "precision": "bf16"},
        evaluation={"splitFraction": 0.2, "everySteps": 2},
        output={"weights": "best"},
        ppo={"rewardModel": {"http": {"url": "http://nowhere"}}},
    )
    workflow.run(run)
    assert json.loads((run.folders.reports / "all_results.json").read_text())["weights_step"] == 2
    lines = [json.loads(line) for line in (run.folders.reports / "samples.jsonl").read_text().splitlines()]
    assert [line["current_steps"] for line in lines] == sorted(line["current_steps"] for line in lines)
    assert {line["current_steps"] for line in lines} == {2, 4}
    assert not (run.folders.job / "scores").exists()


def test_answers_without_an_end_are_not_the_best_though_their_scores_are_higher(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations are compared by the normalized reward, which has the penalty for a missing end."""
    generate = RolloutCollector.generate

    def ends_at_first(self: RolloutCollector, model: Any, prompts: Any, batch_size: int, processors: Any = None) -> Any:
        if processors is not None:  # a rollout
            return generate(self, model, prompts, batch_size, processors)
        return [[11, self.stop_ids[0]] if self.trainer.state.global_step == 2 else [11, 11] for _ in prompts]

    def of_its_letters(self: RewardClient, texts: Sequence[str], check_stop: Any) -> list[float]:
        return [0.0 if text.endswith("<|im_end|>") else 0.5 for text in texts]

    monkeypatch.setattr(RolloutCollector, "generate", ends_at_first)
    monkeypatch.setattr(RewardClient, "score", of_its_letters)
    run = make_run(
        root,
        training={"maxSteps": 4},
        evaluation={"splitFraction": 0.2, "everySteps": 2},
        output={"weights": "best"},
        ppo={"rewardModel": {"http": {"url": "http://nowhere"}}, "rewardNormalization": "none"},
    )
    workflow.run(run)
    assert tiny.logged(run, "eval_reward") == [0.0, 0.5]
    assert tiny.logged(run, "eval_loss") == [0.0, 0.5]
    assert json.loads((run.folders.reports / "all_results.json").read_text())["weights_step"] == 2
