"""The settings of a configuration, and which of them have been used."""

from typing import Any

LOCAL = ("models", "model", "saves", "save", "output", "outputs", "checkpoints", "data", "ckpts")
"""First parts of paths that are no organisations of a hub."""
NOTHING = (None, "", "none", "None", "null")


class Settings:
    """A configuration. `take` gives a setting, and remembers that it was used."""

    def __init__(self, given: dict[str, Any], models_claim: str) -> None:
        self.given = given
        self.models_claim = models_claim
        self.moved: list[str] = []
        """Local paths that became paths on a claim."""
        self._taken: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """The value, or the default if it is left out or null."""
        self._taken.add(name)
        value = self.given.get(name)
        return default if value in NOTHING else plain(value)

    def number(self, name: str, default: float | None = None) -> float | None:
        """A number, which YAML may have read as text (5e-5)."""
        value = self.take(name, default)
        return None if value is None else float(value)

    def has(self, name: str) -> bool:
        """Whether the configuration sets it."""
        return self.given.get(name) not in NOTHING

    def left(self) -> list[tuple[str, Any]]:
        """What was not taken."""
        return [(name, value) for name, value in self.given.items() if name not in self._taken]

    def source(self, text: str, revision: str | None = None) -> str:
        """The URI of a model: a hub repository, or a folder on a claim."""
        if "://" in text:
            return text
        parts = text.strip("/").split("/")
        local = text.startswith(("/", ".", "~")) or len(parts) != 2 or parts[0] in LOCAL
        if not local:
            return f"hf://{text}" + (f"@{revision}" if revision and revision != "main" else "")
        folder = "/".join(part for part in parts if part not in (".", "..", "~"))
        self.moved.append(folder)
        return f"pvc://{self.models_claim}/{folder}"


def plain(value: Any) -> Any:
    """A value of a command line as YAML has it."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value.strip()
