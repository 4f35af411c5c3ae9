"""The exposition formats of Prometheus: the text format, and OpenMetrics for who asks for it."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

OPEN_METRICS = "application/openmetrics-text"
CONTENT_TYPES = {
    False: "text/plain; version=0.0.4; charset=utf-8",
    True: f"{OPEN_METRICS}; version=1.0.0; charset=utf-8",
}
"""The Content-Type of each format: True is OpenMetrics."""

Labels = tuple[str, ...]
"""The values of a family's labels."""
Samples = Mapping[Labels, float]


@dataclass(frozen=True)
class Family:
    """A metric: its name, its type, what it says, and the names of its labels."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    explanation: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names that queries use."""
        return tuple(f"{self.name}{end}" for end in ("_bucket", "_count", "_sum")) * (self.kind == "histogram") or (
            self.name,
        )


@dataclass
class Histogram:
    """Counts of observations, by label values."""

    bounds: Sequence[float]
    known: Sequence[Labels] = ()
    """Label values that are shown before there is an observation: Prometheus sees no increase to a first value."""
    counts: dict[Labels, list[int]] = field(default_factory=dict)
    sums: dict[Labels, float] = field(default_factory=dict)

    def observe(self, value: float, *labels: str) -> None:
        counts = self.counts.setdefault(labels, [0] * (len(self.bounds) + 1))
        counts[bisect_left(self.bounds, value)] += 1
        self.sums[labels] = self.sums.get(labels, 0.0) + value


def accepts_open_metrics(accept: str) -> bool:
    """Whether the Accept header of a request names OpenMetrics."""
    return OPEN_METRICS in accept


def render(metrics: Iterable[tuple[Family, Samples | Histogram]], *, open_metrics: bool = False) -> str:
    """All families, in one of both formats."""
    lines: list[str] = []
    for family, values in metrics:
        # In OpenMetrics, a counter's family has no suffix, and its samples have.
        name = family.name.removesuffix("_total") if open_metrics else family.name
        lines += [f"# HELP {name} {family.explanation}", f"# TYPE {name} {family.kind}"]
        lines += _histogram(family, values) if isinstance(values, Histogram) else _plain(family, values)
    return "\n".join([*lines, "# EOF"] if open_metrics else lines) + "\n"


def _plain(family: Family, values: Samples) -> Iterator[str]:
    for labels, value in sorted(values.items()):
        yield _line(family.name, family.labels, labels, value)


def _histogram(family: Family, histogram: Histogram) -> Iterator[str]:
    zeros = {labels: [0] * (len(histogram.bounds) + 1) for labels in histogram.known}
    for labels, counts in sorted((zeros | histogram.counts).items()):
        below = 0
        for bound, count in zip([*map(float, histogram.bounds), float("inf")], counts, strict=True):
            below += count
            le = "+Inf" if bound == float("inf") else repr(bound)
            yield _line(f"{family.name}_bucket", (*family.labels, "le"), (*labels, le), below)
        yield _line(f"{family.name}_sum", family.labels, labels, histogram.sums.get(labels, 0.0))
        yield _line(f"{family.name}_count", family.labels, labels, below)


def _line(name: str, names: Sequence[str], labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in zip(names, labels, strict=True))
    number = str(int(value)) if value == int(value) else repr(value)
    return f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
