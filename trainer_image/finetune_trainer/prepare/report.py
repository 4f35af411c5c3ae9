"""jobs/<name>/reports/prepare.json and prepare.md: the rows of the data, what was prepared, and the memory it needs.

The pipeline writes it from the manifest, so that a second run reports the same. The Markdown file shows users in a
minute whether this is the data that they meant.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.row import Row
from finetune_trainer.prepare.dataset_statistics import BUCKETS, PAIR, DatasetStatistics, not_used
from finetune_trainer.prepare.memory_check import MemoryNeeds, gib
from finetune_trainer.workspace.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune_trainer.model.experts import AdaptedWeights

NAME = "prepare"
SAMPLE_TOKENS = 2048
WHY_LEFT_OUT = {
    "rows": "nothing in them is trained",
    "pairs": "cutoffLength ends before one of the answers",
    "answers": "cutoffLength ends before the answer",
    "prompts": "cutoffLength leaves no room for ppo.maxNewTokens beside them",
}
"""Unit -> reason."""
HISTOGRAMS = {
    "chosen": "prompts with the chosen answer",
    "rejected": "prompts with the rejected answer",
    "answers": "prompts with their answer",
}
"""Name of a histogram -> what it counts, if the name does not say it."""


def sample_text(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], unit: str) -> str:
    """The first unit of the training data as text, with what is trained in [[double brackets]]."""
    if unit == "pairs":
        return "\n\n".join(f"{name}:\n{_text(tokenizer, row)}" for name, row in zip(PAIR, rows, strict=False))
    if unit == "answers":
        return f"{'wanted' if rows[0].desirable else 'unwanted'}:\n{_text(tokenizer, rows[0])}"
    return _text(tokenizer, rows[0])


def _text(tokenizer: "PreTrainedTokenizerBase", row: Row) -> str:
    parts, position = [], 0
    ids = row.input_ids[:SAMPLE_TOKENS]
    for start, end in row.trained:
        if start >= len(ids):
            break
        parts += [tokenizer.decode(ids[position:start]), "[[", tokenizer.decode(ids[start:end]), "]]"]
        position = min(end, len(ids))
    parts += [tokenizer.decode(ids[position:]), "…" if len(ids) < len(row.input_ids) else ""]
    return "".join(map(str, parts))


def write_report(
    folder: Path, content: Mapping[str, Any], statistics: Sequence[DatasetStatistics], needs: MemoryNeeds | None
) -> None:
    """Write both files. ``content`` has everything besides statistics and memory."""
    folder.mkdir(parents=True, exist_ok=True)
    memory = needs.__dict__ if needs else None
    datasets = [dataset.to_dict() for dataset in statistics]
    write_json(folder / f"{NAME}.json", {**content, "datasets": datasets, "memory": memory})
    lines = [f"# Prepared data of {content['job']}", ""]
    if "error" in content:
        lines += [f"**The data cannot be used for training:** {content['error']}", ""]
    if content.get("warning"):
        lines += [f"**Warning:** {content['warning']}.", ""]
    if content.get("attention"):
        lines += [f"Attention: {content['attention']}.", ""]
    if content.get("microBatch"):
        lines += [f"{content['microBatch']}.", ""]
    lines += _split_lines(content.get("splits", {}), statistics[0].unit if statistics else "rows")
    for dataset in statistics:
        lines += _dataset_lines(dataset)
    if adapted := content.get("adapted"):
        of_experts = "" if adapted["experts"] is None else f", and {100 * adapted['experts']:.1f} % of its experts'"
        lines += [f"The adapter changes {100 * adapted['share']:.1f} % of the model's weights{of_experts}.", ""]
    if needs:
        lines += _memory_lines(needs)
    if content.get("sample"):
        fence = "`" * 6
        lines += ["## First sample as the model sees it", "", "What is trained is in [[ ]].", ""]
        lines += [f"{fence}text", content["sample"], fence, ""]
    (folder / f"{NAME}.md").write_text("\n".join(lines), encoding="utf-8")


def experts_left_out(adapted: "AdaptedWeights | None") -> str | None:
    """The warning about a mixture of experts whose experts the adapter does not change."""
    if adapted is None or adapted.experts is None or adapted.experts > 0:
        return None
    return (
        f"The adapter changes {100 * adapted.share:.1f} % of the model's weights and none of its experts: they are"
        " parameters of one module, not linear layers"
    )


def _split_lines(splits: dict[str, dict[str, Any]], unit: str) -> list[str]:
    if not splits:
        return []
    packed = any(facts["packs"] is not None for facts in splits.values())
    columns = {"rows": unit, "tokens": "tokens", "trained_tokens": "trained tokens", "longest": "longest row"}
    columns |= {"packs": "packs"} if packed else {}
    lines = [f"| split | {' | '.join(columns.values())} |", "|---|" + "---:|" * len(columns)]
    for name, facts in splits.items():
        numbers = [facts[key] for key in columns]
        lines.append(f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} |")
    return [*lines, ""]


def _dataset_lines(dataset: DatasetStatistics) -> list[str]:
    tokenized = dataset.kept + dataset.left_out
    lines = [
        f"## {dataset.source}",
        "",
        f"{dataset.rows:,} rows, {dataset.broken:,} of them broken. Tokenized {dataset.unit}: {tokenized:,}; cut at"
        f" cutoffLength: {dataset.truncated:,} ({_percentage(dataset.truncated, tokenized)}, {dataset.tokens_cut:,}"
        f" tokens); left out because {WHY_LEFT_OUT[dataset.unit]}: {dataset.emptied:,}.",
        "",
    ]
    if dataset.alike:
        lines += [f"Left out because cutoffLength ends before their answers differ: {dataset.alike:,}.", ""]
    if dataset.unit == "answers":
        lines += [f"Wanted: {dataset.kept - dataset.unwanted:,}; unwanted: {dataset.unwanted:,}.", ""]
    if dataset.broken:
        lines += ["| rule | rows |", "|---|---:|", *(f"| {rule} | {n:,} |" for rule, n in dataset.rules.items()), ""]
        lines += [f"- `{row.place}`: {row.message}" for row in dataset.examples]
        lines.append("")
    if dataset.not_used:
        lines += ["| not used | rows |", "|---|---:|"]
        lines += [f"| {_cell(name)} | {n:,} |" for name, n in not_used([dataset]).items()] + [""]
    for name, lengths in dataset.lengths.items():
        lines += [f"Tokens of {HISTOGRAMS.get(name, name)}:", "", "```text", *_histogram(lengths), "```", ""]
    return lines


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _histogram(lengths: Sequence[int]) -> Iterator[str]:
    for number, count in enumerate(lengths):
        name = f"up to {BUCKETS[number]}" if number < len(BUCKETS) else "longer"
        if count:
            yield f"{name:>14} {count:>12,} {'#' * max(1, round(40 * count / max(lengths)))}"


def _memory_lines(needs: MemoryNeeds) -> list[str]:
    known = f"a GPU of {gib(needs.gpu)}" if needs.gpu else "GPUs of unknown memory (set resources.gpuMemory)"
    lines = ["## Memory of one GPU", ""]
    micro_batch = _micro_batch(needs.micro_batch, needs)
    lines += [f"Estimate at micro-batch {micro_batch}, for {known}. Recomputed in the backward pass:"]
    lines += [f"{needs.recompute}. An attempt decides again, by the memory of its GPUs, if training.recompute is auto."]
    lines += ["", "| for | |", "|---|---:|"]
    lines += [f"| {name} | {gib(size)} |" for name, size in needs.terms.items()]
    lines += [f"| at the peak | {gib(needs.total)} |", "", "Not all of it is there at the same time.", ""]
    if needs.proposed:
        lines += [f"Proposed micro-batch: {_micro_batch(needs.proposed, needs)}.", ""]
    return lines


def _micro_batch(size: int, needs: MemoryNeeds) -> str:
    return f"{size:,} tokens" if needs.unit == "tokens" else str(size)


def _percentage(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "0 %"
