"""The results as a table for docs/benchmarks.md, and the figures that are computed from several of them.

MFU is the share of the GPU's matrix peak that useful work reaches: FLOPs of a token times tokens a second, over the
peak. A token costs 6 N FLOPs when all N weights are trained, two for the forward pass and four for the backward pass
(Kaplan et al. 2020, arXiv:2001.08361, section 2.1; the convention of PaLM, arXiv:2204.02311, appendix B, without its
term for attention). With LoRA the gradients of frozen weights are not computed, which leaves 4 N. Recomputed forward
passes are no useful work. N are the weights that are multiplied: all but an embedding that is not the head, too.
"""

from typing import Any

HEADER = (
    "| case | tokens/s | step | MFU, data sheet | MFU, measured peak | peak GPU memory | estimate | last loss | |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---|"
)


def flops_per_token(method: str, weights: int) -> int:
    """Useful ones."""
    return (6 if method == "full" else 4) * weights


def mfu(entry: dict[str, Any], tflops: float | None) -> float | None:
    """Of a case, by a peak in TFLOP/s."""
    got, weights = entry.get("result") or {}, (entry.get("result") or {}).get("multiplied_weights")
    if not weights or not tflops or entry["case"]["stage"] not in ("pt", "sft"):
        return None  # other stages pass rows through more than one model
    return float(flops_per_token(entry["case"]["method"], weights) * got["tokens_per_second"] / tflops / 1e12)


def off(entry: dict[str, Any]) -> float | None:
    """By which share of the measured peak prepare's estimate is off; above 0: it is too high."""
    got = entry.get("result") or {}
    if not got.get("peak_gib") or not got.get("estimate_gib"):
        return None
    return float(got["estimate_gib"] / got["peak_gib"] - 1)


def row(entry: dict[str, Any], environment: dict[str, Any]) -> str:
    """A case as a line of the table."""
    got, name = entry.get("result") or {}, entry["case"]["name"]
    if entry["error"]:
        return f"| {name} | | | | | | | | {entry['error'].splitlines()[0][:160]} |"
    if "same" in got:
        verdict = "same losses" if got["same"] else "DIFFERENT LOSSES"
        return f"| {name} | | | | | | | | {verdict}, {got['largest_difference']:.1e} apart ({got['attention']}) |"
    measured = environment.get("gemm_tflops")
    shares = [mfu(entry, environment.get("peak_tflops")), mfu(entry, measured if isinstance(measured, float) else None)]
    error = off(entry)
    cells = [
        name,
        f"{got['tokens_per_second']:,.0f}",
        f"{got['step_seconds']:.3f} s" if "step_seconds" in got else "",
        *("" if share is None else f"{share:.1%}" for share in shares),
        f"{got['peak_gib']:.2f} GiB" if got.get("peak_gib") else "",
        "" if error is None else f"{error:+.0%}",
        f"{got['losses'][-1]:.3f}" if got.get("losses") else "",
        str(got.get("attention", "")),
    ]
    return f"| {' | '.join(cells)} |"


def markdown(results: dict[str, Any]) -> str:
    """Everything that was measured so far."""
    environment = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    lines = [
        f"{environment.get('gpu') or 'No GPU'}, {environment.get('nvidia-smi', '')}; {versions}; Triton:"
        f" {environment.get('triton', '-')}; attention: {environment.get('attention', '-')}; bf16 matrix products:"
        f" {environment.get('gemm_tflops', '-')} TFLOP/s",
        "",
        HEADER,
        *(row(entry, environment) for entry in results["cases"]),
    ]
    reasons: dict[str, list[str]] = {}
    for name, reason in results["skipped"].items():
        reasons.setdefault(reason, []).append(name)
    lines += [f"\nNot run, {reason}: {'; '.join(names)}." for reason, names in reasons.items()]
    return "\n".join(lines) + "\n"
