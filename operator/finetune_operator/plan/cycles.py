"""Jobs that wait for each other."""

from collections.abc import Callable, Collection


def find_cycle(start: str, dependencies: Callable[[str], Collection[str]]) -> tuple[str, ...]:
    """Names of jobs of which each waits for the next, from `start` back to it by the shortest path; empty if `start` is
    in no cycle."""
    before: dict[str, str] = {}
    reached = [start]
    for name in reached:
        for other in sorted(dependencies(name)):
            if other == start:
                path = [start, name]
                while path[-1] != start:
                    path.append(before[path[-1]])
                return tuple(reversed(path))
            if other not in before:
                before[other] = name
                reached.append(other)
    return ()
