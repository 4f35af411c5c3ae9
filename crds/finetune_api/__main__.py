"""``python -m finetune_api generate [--check]``: write, or compare, all files that are generated from the models.

Run from the root of the repository.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

from finetune_api.api_reference import api_reference
from finetune_api.crd import crd, schema
from finetune_api.job import API_VERSION, KIND, FineTuneJob

_NOTE = "# Generated from crds/finetune_api by `make generate`; do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, which Helm and people read badly."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def files() -> dict[Path, str]:
    """Path -> content of every generated file."""
    manifest = crd()
    plain = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=160)
    return {
        Path("crds/finetunejobs.yaml"): _NOTE + plain,
        Path("charts/finetune-operator/templates/crd.yaml"): _chart_template(plain),
        Path("crds/finetunejob.schema.json"): json.dumps(_editor_schema(), indent=1) + "\n",
        Path("docs/api-reference.md"): api_reference(schema()),
    }


def _chart_template(plain: str) -> str:
    """The CRD as a template of the chart, so that an upgrade of the chart upgrades the CRD."""
    if "{{" in plain:
        raise SystemExit("The CRD contains '{{', which Helm reads as a template: change the description or message")
    head, body = plain.split("metadata:\n", 1)
    name, rest = body.split("\n", 1)
    return f"""{_NOTE}{{{{- if .Values.crds.enabled }}}}
{head}metadata:
{name}
  labels:
    {{{{- include "finetune-operator.labels" . | nindent 4 }}}}
  {{{{- with include "finetune-operator.crdAnnotations" . }}}}
  annotations:
    {{{{- . | nindent 4 }}}}
  {{{{- end }}}}
{rest}{{{{- end }}}}
"""


def _editor_schema() -> dict[str, object]:
    """JSON schema for editors. It rejects unknown fields, unlike the schema of the CRD."""
    root = FineTuneJob.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"{API_VERSION}/{KIND}", **root}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m finetune_api", description=__doc__)
    parser.add_argument("command", choices=["generate"])
    parser.add_argument("--check", action="store_true", help="compare only, and exit with 1 if a file differs")
    arguments = parser.parse_args()
    stale = [path for path, content in files().items() if not path.exists() or path.read_text() != content]
    if arguments.check:
        for path in stale:
            print(f"{path} differs from the models: run `make generate` and commit the file", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
