"""jobs/<name>/reports/prepare.json and prepare.md: what was found, what was made, and what it will need.

Called by ``prepare.run``, with the facts of the manifest, so that a second run reports the same. The Markdown is for
people who want to know in a minute whether this is the data they meant.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.data.row import Row
from finetune_trainer.prepare.findings import EDGES, PAIR, Findings
from finetune_trainer.prepare.memory import Needs, gib
from finetune_trainer.workspace import write_json

NAME = "prepare"
SAMPLE_TOKENS = 2048
WHY_LEFT_OUT = {
    "rows": "nothing in them is trained",
    "pairs": "cutoffLength ends before one of the answers",
    "answers": "cutoffLength ends before the answer",
    "prompts": "cutoffLength leaves no room for ppo.maxNewTokens beside them",
}
NAMES = {"chosen": "prompts with the chosen answer", "rejected": "prompts with the rejected answer"} | {
    "answers": "prompts with their answer"
}


def sample(tokenizer: Any, rows: Sequence[Row], unit: str) -> str:
    """The first of what is trained on, as text, what is trained of it in [[double brackets]]."""
    if unit == "pairs":
        return "\n\n".join(f"{name}:\n{_text(tokenizer, row)}" for name, row in zip(PAIR, rows, strict=False))
    if unit == "answers":
        return f"{'wanted' if rows[0].desirable else 'unwanted'}:\n{_text(tokenizer, rows[0])}"
    return _text(tokenizer, rows[0])


def _text(tokenizer: Any, row: Row) -> str:
    parts, at = [], 0
    ids = row.input_ids[:SAMPLE_TOKENS]
    for start, end in row.trained:
        if start >= len(ids):
            break
        parts += [tokenizer.decode(ids[at:start]), "[[", tokenizer.decode(ids[start:end]), "]]"]
        at = min(end, len(ids))
    return "".join([*parts, tokenizer.decode(ids[at:]), "…" if len(ids) < len(row.input_ids) else ""])


def write(folder: Path, content: dict[str, Any], findings: Sequence[Findings], needs: Needs | None) -> None:
    """Both files. ``content`` is what is known besides the findings."""
    folder.mkdir(parents=True, exist_ok=True)
    memory = needs.__dict__ if needs else None
    write_json(folder / f"{NAME}.json", {**content, "datasets": [f.to_dict() for f in findings], "memory": memory})
    lines = [f"# What was prepared for {content['job']}", ""]
    if "error" in content:
        lines += [f"**It can't be trained on:** {content['error']}", ""]
    if content.get("warning"):
        lines += [f"**Look at this:** {content['warning']}.", ""]
    lines += _splits(content.get("splits", {}), findings[0].unit if findings else "rows")
    for found in findings:
        lines += _dataset(found)
    if needs:
        lines += _memory(needs)
    if content.get("sample"):
        fence = "`" * 6
        lines += ["## First of the data as the model sees it", "", "What is trained stands in [[ ]].", ""]
        lines += [f"{fence}text", content["sample"], fence, ""]
    (folder / f"{NAME}.md").write_text("\n".join(lines), encoding="utf-8")


def _splits(splits: dict[str, dict[str, int]], unit: str) -> list[str]:
    if not splits:
        return []
    lines = [f"| split | {unit} | tokens | trained tokens | longest row |", "|---|---:|---:|---:|---:|"]
    for name, facts in splits.items():
        lines.append(
            f"| {name} | {facts['rows']:,} | {facts['tokens']:,} | {facts['trained_tokens']:,} | {facts['longest']:,} |"
        )
    return [*lines, ""]


def _dataset(found: Findings) -> list[str]:
    made = found.kept + found.emptied
    lines = [
        f"## {found.source}",
        "",
        f"{found.rows:,} rows, {found.broken:,} of them broken. Tokenized {found.unit}: {made:,}; cut at cutoffLength:"
        f" {found.truncated:,} ({_share(found.truncated, made)}, {found.tokens_cut:,} tokens); left out because"
        f" {WHY_LEFT_OUT[found.unit]}: {found.emptied:,}.",
        "",
    ]
    if found.unit == "answers":
        lines += [f"Wanted: {found.kept - found.unwanted:,}; unwanted: {found.unwanted:,}.", ""]
    if found.broken:
        lines += ["| rule | rows |", "|---|---:|", *(f"| {rule} | {n:,} |" for rule, n in found.rules.items()), ""]
        lines += [f"- `{row.place}`: {row.message}" for row in found.examples]
        lines.append("")
    for what, lengths in found.lengths.items():
        lines += [f"Tokens of {NAMES.get(what, what)}:", "", "```text", *_histogram(lengths), "```", ""]
    return lines


def _histogram(lengths: Sequence[int]) -> Iterator[str]:
    for number, count in enumerate(lengths):
        name = f"up to {EDGES[number]}" if number < len(EDGES) else "longer"
        if count:
            yield f"{name:>14} {count:>12,} {'#' * max(1, round(40 * count / max(lengths)))}"


def _memory(needs: Needs) -> list[str]:
    lines = ["## Memory of one GPU", "", f"Estimate at micro-batch {needs.micro_batch}.", "", "| for | |", "|---|---:|"]
    lines += [f"| {name} | {gib(size)} |" for name, size in needs.terms.items()]
    lines += [f"| all | {gib(needs.total)} |", ""]
    if needs.proposed:
        lines += [f"Proposed micro-batch: {needs.proposed}.", ""]
    return lines


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"
