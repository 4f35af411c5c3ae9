"""YAML as people mean it: a key that is there twice is an error, as for kubectl. PyYAML would take the last value, in
silence."""

from collections.abc import Iterator
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def load_all(text: str) -> Iterator[Any]:
    """The documents of a text. Raises yaml.YAMLError."""
    return yaml.load_all(text, Loader=_Loader)


def load(text: str) -> Any:
    """The one document of a text; None for an empty text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)
