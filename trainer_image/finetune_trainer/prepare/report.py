"""jobs/<name>/reports/prepare.json and prepare.md: what was found, what was made, and what it will need.

Called by ``prepare.run``, with the facts of the manifest, so that a second run reports the same. The Markdown is for
people who want to know in a minute whether this is the data they meant.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.data.row import Row
from finetune_trainer.prepare.findings import EDGES, Findings
from finetune_trainer.prepare.memory import Needs, gib
from finetune_trainer.workspace import write_json

NAME = "prepare"
SAMPLE_TOKENS = 2048


def sample(tokenizer: Any, row: Row) -> str:
    """One row as text, what is trained of it in [[double brackets]]."""
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
    lines += _splits(content.get("splits", {}))
    for found in findings:
        lines += _dataset(found)
    if needs:
        lines += _memory(needs)
    if content.get("sample"):
        fence = "`" * 6
        lines += ["## First row as the model sees it", "", "What is trained stands in [[ ]].", ""]
        lines += [f"{fence}text", content["sample"], fence, ""]
    (folder / f"{NAME}.md").write_text("\n".join(lines), encoding="utf-8")


def _splits(splits: dict[str, dict[str, int]]) -> list[str]:
    if not splits:
        return []
    lines = ["| split | rows | tokens | trained tokens | longest row |", "|---|---:|---:|---:|---:|"]
    for name, facts in splits.items():
        lines.append(
            f"| {name} | {facts['rows']:,} | {facts['tokens']:,} | {facts['trained_tokens']:,} | {facts['longest']:,} |"
        )
    return [*lines, ""]


def _dataset(found: Findings) -> list[str]:
    rows = found.kept + found.emptied
    lines = [
        f"## {found.source}",
        "",
        f"{found.rows:,} rows, {found.broken:,} of them broken. Tokenized: {rows:,}; cut at cutoffLength:"
        f" {found.truncated:,} ({_share(found.truncated, rows)}, {found.tokens_cut:,} tokens); left out because"
        f" nothing in them is trained: {found.emptied:,}.",
        "",
    ]
    if found.broken:
        lines += ["| rule | rows |", "|---|---:|", *(f"| {rule} | {n:,} |" for rule, n in found.rules.items()), ""]
        lines += [f"- `{row.place}`: {row.message}" for row in found.examples]
        lines.append("")
    most = max(found.lengths)
    if most:
        lines += ["Lengths in tokens:", "", "```text"]
        for number, count in enumerate(found.lengths):
            name = f"up to {EDGES[number]}" if number < len(EDGES) else "longer"
            if count:
                lines.append(f"{name:>14} {count:>12,} {'#' * max(1, round(40 * count / most))}")
        lines += ["```", ""]
    return lines


def _memory(needs: Needs) -> list[str]:
    lines = ["## Memory of one GPU", "", f"Estimate at micro-batch {needs.micro_batch}.", "", "| for | |", "|---|---:|"]
    lines += [f"| {name} | {gib(size)} |" for name, size in needs.terms.items()]
    lines += [f"| all | {gib(needs.total)} |", ""]
    if needs.proposed:
        lines += [f"Proposed micro-batch: {needs.proposed}.", ""]
    return lines


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"
