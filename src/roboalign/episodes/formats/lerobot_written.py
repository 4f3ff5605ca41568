"""Read back what a LeRobot writer that was killed has committed."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.core.errors import RoboAlignError
from roboalign.episodes.formats import lerobot_layout as layout


def told(source: Any) -> str:
    """Return a source as a message names it."""
    if not isinstance(source, dict):
        return "not recorded"
    options = ", ".join(f"{key}={value}" for key, value in source.get("options", {}).items())
    return f"{source.get('name')} from {source.get('first_episode')}{' with ' * bool(options)}{options}"


def read_written(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the episode records of a data file. Raises RoboAlignError if it is broken or its fps,
    features, space or axes are not `settings`."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise RoboAlignError(
            f"not a readable parquet file ({error})", where=str(path), fix="delete it"
        ) from None
    extras = json.loads(metadata.get(layout.EXTRAS_KEY, b"{}"))
    found = {key: extras.get(key) for key in settings}
    if found != settings and {**found, "source": settings.get("source")} == settings:
        raise RoboAlignError(
            f"the data set there is of another source: {told(found['source'])}; this one is {told(settings['source'])}",
            where=str(path),
            fix="choose an empty folder",
        )
    if found != settings:
        problem = (
            "the data set there has another fps or action space, other cameras, names or shapes"
        )
        raise RoboAlignError(problem, where=str(path), fix="choose an empty folder")
    return extras["episodes"]
