"""Makes our packages known by name and version in an image: ``python metadata.py FOLDER PYPROJECT...``.

Called by the Dockerfile. The packages are copied, not installed: building wheels would need a build tool that no lock
names. What importlib.metadata reads of a package is little enough to be written here.
"""

import sys
import tomllib
from pathlib import Path

folder, *projects = map(Path, sys.argv[1:])
for file in projects:
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
