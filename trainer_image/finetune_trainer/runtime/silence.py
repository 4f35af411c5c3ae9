"""What the ranks of a run that hangs did last, in words.

All ranks fall silent soon after one of them, because they wait for it. Heartbeats alone do not say which rank that is,
so all are named, those of other nodes as well.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.runtime.heartbeat import Phase


@dataclass(frozen=True)
class Silence:
    """The last sign of life of a rank."""

    rank: int
    node: int
    phase: Phase
    step: int
    seconds: float
    """For so long it has been silent."""
    limit: float | None = None
    """The seconds that were allowed, if it has been silent for longer."""


def describe(silences: Sequence[Silence]) -> str:
    """For people. Ranks that did the same share an entry, and the entry with the fewest ranks comes first: most ranks
    only wait."""
    groups: dict[tuple[Phase, int], list[Silence]] = defaultdict(list)
    for silence in sorted(silences, key=lambda silence: silence.rank):
        groups[silence.phase, silence.step].append(silence)
    nodes = {silence.node for silence in silences}
    entries = "; ".join(_describe(group, nodes) for group in sorted(groups.values(), key=len))
    logs = "the logs of the pods" if len(nodes) > 1 else "the pod's log"
    return f"The run hangs: {entries}. See the stacks of all threads in {logs}"


def _describe(group: list[Silence], nodes: set[int]) -> str:
    who = named("rank", [silence.rank for silence in group])
    if nodes != {0}:
        who += f" ({named('node', sorted({silence.node for silence in group}))})"
    limits = [silence.limit for silence in group if silence.limit is not None]
    allowed = f" (limit {min(limits):.0f} s)" if limits else ""
    seconds = max(silence.seconds for silence in group)
    return f"{who} in phase {group[0].phase} after step {group[0].step}, for {seconds:.0f} s{allowed}"


def named(what: str, numbers: Sequence[int]) -> str:
    """Such as "ranks 2, 3 and 4"."""
    words = [str(number) for number in numbers]
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return f"{what}{'s' * (len(numbers) > 1)} {listed}"
