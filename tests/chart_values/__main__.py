"""``python -m tests.chart_values [--check]``: write, or compare, the chart's files that are generated from values.yaml.

Run from the root of the repository.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from tests.chart_values.reader import CHART, ValuesError, read
from tests.chart_values.readme import readme
from tests.chart_values.schema import schema


def files(chart: Path = CHART) -> dict[Path, str]:
    """Path -> content of every generated file."""
    values = read(chart / "values.yaml")
    about = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    return {
        chart / "values.schema.json": schema(values),
        chart / "README.md": readme(values, chart.as_posix(), about),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chart_values", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, and exit with 1 if a file differs")
    check = parser.parse_args().check
    try:
        made = files()
    except ValuesError as error:
        print(error, file=sys.stderr)
        return 1
    stale = {path: text for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if check:
            print(f"{path} differs from values.yaml: run `make generate` and commit the file", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
