"""The jobs that use each other's results, as a small graph: each job stands right of those that it needs."""

from typing import Any

from finetune_cli import jobs
from finetune_cli.cluster.client import Object
from finetune_cli.tree import needs, related

WIDTH, HEIGHT, GAP_X, GAP_Y = 180, 44, 60, 16
MOST = 40
"""Jobs of a graph."""
LETTERS = 20
"""Letters of a name that fit into a box."""


def draw(every: list[Object], name: str) -> dict[str, Any] | None:
    """Boxes and lines, in pixels; None if nothing is related to the job."""
    connected = sorted(related(every, name), key=lambda job: job["metadata"]["name"] != name)
    found = {job["metadata"]["name"]: job for job in connected[:MOST]}
    before = {each: list(needs(job).items()) for each, job in found.items()}
    named = {*found, *(other for uses in before.values() for _, other in uses)}
    if len(named) < 2:
        return None
    depths: dict[str, int] = {}
    for each in sorted(named):
        _depth(each, before, depths, set())
    rows: dict[int, int] = {}
    boxes, places = [], dict[str, tuple[int, int]]()
    for each in sorted(named, key=lambda name: (depths[name], name)):
        column = depths[each]
        x, y = column * (WIDTH + GAP_X) + 1, rows.get(column, 0) * (HEIGHT + GAP_Y) + 1
        rows[column] = rows.get(column, 0) + 1
        places[each] = x, y
        boxes.append(_box(each, found.get(each), x, y, each == name))
    lines = [
        {"use": use, "path": _line(places[other], places[each])} for each, uses in before.items() for use, other in uses
    ]
    width = (max(depths.values()) + 1) * (WIDTH + GAP_X) - GAP_X + 2
    return {"boxes": boxes, "lines": lines, "width": width, "height": max(rows.values()) * (HEIGHT + GAP_Y) + 2}


def _depth(name: str, before: dict[str, list[tuple[str, str]]], depths: dict[str, int], path: set[str]) -> int:
    """Its column. Jobs that wait for each other in a circle do not wait here."""
    if name in path:
        return -1
    if name not in depths:
        others = [_depth(other, before, depths, path | {name}) for _, other in before.get(name, ())]
        depths[name] = 1 + max(others, default=-1)
    return depths[name]


def _box(name: str, job: Object | None, x: int, y: int, here: bool) -> dict[str, Any]:
    what = f"{job['spec']['stage']}, {jobs.phase(job)}" if job else "–"
    short = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
    return {"name": name, "short": short, "what": what, "x": x, "y": y, "here": here, "exists": job is not None}


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + WIDTH, start[1] + HEIGHT // 2, end[0], end[1] + HEIGHT // 2
    middle = (x1 + x2) // 2
    return f"M{x1},{y1}C{middle},{y1} {middle},{y2} {x2},{y2}"
