"""The toy package as if it were installed: its metadata in a folder, and what finds both."""

import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parent / "toy_package"


def write_metadata(folder: Path) -> tuple[str, str]:
    """Write into `folder` what pip would beside the package; return the entries of the path that installs it."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    head = {"Metadata-Version": "2.1", "Name": project["name"], "Version": project["version"]}
    (info / "METADATA").write_text("".join(f"{key}: {value}\n" for key, value in head.items()))
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return str(PACKAGE / "src"), str(folder)
