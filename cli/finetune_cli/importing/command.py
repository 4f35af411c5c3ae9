"""`finetune import`: reads what somebody has, and prints the FineTuneJob and the notes."""

from pathlib import Path
from typing import Any

from finetune_cli import manifest
from finetune_cli.importing import command_line, data_sets, kubeflow, llamafactory
from finetune_cli.importing.notes import Fate, Imported
from finetune_cli.output import Format, to_yaml, warn
from finetune_cli.problem import Problem

INFO = "dataset_info.json"


def imported(arguments: list[str], info: str | None, name: str | None, gpus: int | None, nodes: int | None) -> Imported:
    """One file, or the words of a command line."""
    path = Path(arguments[0]) if len(arguments) == 1 else None
    if path and (path.suffix in (".yaml", ".yml", ".json") or arguments[0] == "-"):
        documents = manifest.read(arguments[0])
        document = documents[0]
        if document.get("kind") == kubeflow.KIND:
            result = kubeflow.convert(document)
            result.job["metadata"]["name"] = name or result.job["metadata"]["name"]
            return result
        if "kind" in document:
            raise Problem(
                f"{arguments[0]} is a {document['kind']}: only LLaMA-Factory's files and TrainJobs are imported."
            )
        line = command_line.CommandLine(document, [], None, 1)
    else:
        text = path.read_text(encoding="utf-8") if path and path.is_file() else " ".join(map(_quoted, arguments))
        line = command_line.parse(text)
    settings = _settings(line, path)
    return llamafactory.convert(
        settings,
        name=name,
        info=_info(info, settings, path),
        gpus=gpus if gpus is not None else line.gpus,
        nodes=nodes or line.nodes,
    )


def show(result: Imported, form: Format | None) -> None:
    """Print the job as YAML with the notes as comments, or both for programs."""
    manifest.check(result.job, "The imported job")
    notes = [note._asdict() for note in result.notes]
    if form is Format.JSON:
        import json

        print(json.dumps({"job": result.job, "notes": notes}, indent=2, ensure_ascii=False))
        return
    for fate in (Fate.LEFT_OUT, Fate.CHANGED):
        for note in result.notes:
            if note.fate is fate:
                print(f"# {note}")
    quiet = [note.setting.partition(":")[0] for note in result.notes if note.fate is Fate.NOT_NEEDED]
    if quiet:
        print(f"# not needed, and nothing is lost: {', '.join(quiet)}")
    print(to_yaml(result.job), end="")
    lost = sum(note.fate is Fate.LEFT_OUT for note in result.notes)
    if lost:
        warn(f"{lost} setting{'s'[: lost != 1]} could not be kept; the comments say why, and what to do.")


def _settings(line: command_line.CommandLine, path: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for named in line.files:
        places = [Path(named), *([path.parent / named] if path else [])]
        place = next((each for each in places if each.is_file()), None)
        if place is None:
            raise Problem(f"The command line names {named}, which does not exist here. Run the import where it is.")
        found |= manifest.read(str(place))[0]
    return found | line.settings


def _info(given: str | None, settings: dict[str, Any], path: Path | None) -> data_sets.Info | None:
    """--dataset-info, or the file beside the data; else None, and the data sets of LLaMA-Factory are known."""
    if given:
        return data_sets.read_info(Path(given) / INFO if Path(given).is_dir() else Path(given))
    folder = str(settings.get("dataset_dir") or "data")
    for start in (Path(), *([path.parent] if path else [])):
        if (start / folder / INFO).is_file():
            return data_sets.read_info(start / folder / INFO)
    return None


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)
