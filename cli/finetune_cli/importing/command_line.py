"""A command line of LLaMA-Factory, or a shell script with one, as a configuration."""

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from finetune_cli.problem import Problem

PROGRAMS = ("llamafactory-cli", "lmf", "train.py", "train_bash.py", "cli_demo.py")
TUNERS = {
    "nproc_per_node": "gpus",
    "num_gpus": "gpus",
    "num_processes": "gpus",
    "nnodes": "nodes",
    "num_machines": "nodes",
}


class CommandLine(NamedTuple):
    """What a command line asks for."""

    settings: dict[str, Any]
    files: list[str]
    """Configurations that it names; its own settings take precedence."""
    gpus: int | None
    nodes: int


def parse(text: str) -> CommandLine:
    """The first training of a script. Raises Problem if it has none."""
    variables: dict[str, str] = {}
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise Problem(f"The command line cannot be read: {error}: {line.strip()[:80]}") from error
        words = [_expanded(word, variables) for word in words]
        own: dict[str, str] = {}
        while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
            key, _, value = words.pop(0).partition("=")
            own[key] = value
        if words[:1] == ["export"]:
            own |= dict(word.split("=", 1) for word in words[1:] if "=" in word)
            words = []
        if not words:
            variables |= own
            continue
        at = next((at for at, word in enumerate(words) if Path(word).name in PROGRAMS), None)
        if at is not None:
            return _training(words[:at], words[at + 1 :], variables | own)
    raise Problem("No training of LLaMA-Factory is in the command line: no llamafactory-cli, lmf or src/train.py.")


def _training(launcher: list[str], words: list[str], environment: dict[str, str]) -> CommandLine:
    if words[:1] == ["train"]:
        words = words[1:]
    launched = _flags(launcher)
    counts = {"gpus": environment.get("NPROC_PER_NODE"), "nodes": environment.get("NNODES")}
    for flag, kind in TUNERS.items():
        counts[kind] = str(launched[flag]) if flag in launched else counts[kind]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if not counts["gpus"] and visible:
        counts["gpus"] = str(len(visible.split(",")))
    settings = _flags(words)
    files = [word for word in words if word.endswith((".yaml", ".yml", ".json")) and not word.startswith("-")]
    files = [word for word in files if word not in settings.values()]
    for word in words:  # overrides as LLaMA-Factory reads them: key=value
        key, separator, value = word.partition("=")
        if separator and re.fullmatch(r"[a-z]\w*", key):
            settings[key] = _value(value)
    gpus, nodes = ((str(counts[kind] or "")) for kind in ("gpus", "nodes"))
    return CommandLine(settings, files, int(gpus) if gpus.isdecimal() else None, int(nodes) if nodes.isdecimal() else 1)


def _flags(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    key = None
    for word in words:
        if word.startswith("--"):
            key, separator, value = word[2:].partition("=")
            key = key.replace("-", "_")
            found[key] = _value(value) if separator else True
            key = None if separator else key
        elif key is not None:
            found[key] = _value(word) if found[key] is True else f"{found[key]},{word}"
    return found


def _value(text: str) -> Any:
    import yaml

    value = yaml.safe_load(text) if text else None
    if isinstance(value, str):
        try:
            return float(value) if re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", value) else value
        except ValueError:
            return value
    return value


def _expanded(word: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], found[0]), word)
