"""What ``make gpu-check`` would run, as far as it can be told without a GPU."""

from finetune_api.contract import resolve
from finetune_api.job import FineTuneJob

from tests.bench import gpu_check


def test_its_jobs_are_valid_and_cover_what_it_promises() -> None:
    cases = [*gpu_check.cases(cpu=True), gpu_check.Case("pt", "full", packing="bfd", attention="flashAttention2")]
    jobs = [resolve(FineTuneJob.model_validate(gpu_check.job(case, cpu=False))) for case in cases]
    assert {job.tuning.method for job in jobs} == {"lora", "qlora", "freeze", "full"}
    assert {(job.stage, job.training.packing) for job in jobs} >= {("pt", "bfd"), ("pt", "wrapped"), ("sft", "bfd")}
    assert {case.more for case in cases} == set(gpu_check.MORE)
    assert len({job.name for job in jobs}) == len(jobs)


def test_how_far_an_estimate_is_off_is_a_share_of_what_was_measured() -> None:
    assert gpu_check.off({"total": 3 << 30}, 2.0) == 0.5
    got = {"train_tokens_per_second": 10.0, "final_loss": 1.0, "wall": 3.0, "peak_gpu_memory_gib": 2.0}
    assert "| 2.00 GiB | +50% |" in gpu_check.row(gpu_check.Case(), got, {"total": 3 << 30})
    assert "| - | - |" in gpu_check.row(gpu_check.Case(), {**got, "peak_gpu_memory_gib": None}, {"total": 1})
