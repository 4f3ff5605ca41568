"""Find what installed packages add: entry points, found by name and imported when used."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from roboalign.core.errors import RoboAlignError


def installed(group: str) -> dict[str, EntryPoint]:
    """Return name -> entry point of the installed packages in this group; import none."""
    return {point.name: point for point in entry_points(group=group)}


def find_plugin(group: str, name: str) -> EntryPoint | None:
    """Return the entry point of this name, or None.

    Raises RoboAlignError if two packages define it.
    """
    points = [point for point in entry_points(group=group) if point.name == name]
    if len({point.value for point in points}) > 1:
        packages = " and ".join(sorted({point.dist.name for point in points if point.dist}))
        raise RoboAlignError(
            f"packages {packages} both have a `{name}`",
            where=f"entry points {group}",
            fix="uninstall one of them",
        )
    return points[0] if points else None


def package_of(point: EntryPoint) -> str:
    """Return the package of an entry point, for messages."""
    name = point.dist.name if point.dist else "?"
    return f"package {name} (entry point {point.group}: {point.name})"


def load_plugin(point: EntryPoint) -> Any:
    """Import what an entry point names.

    Raises RoboAlignError naming the package if its code fails.
    """
    try:
        return point.load()
    except Exception as error:  # whatever the package's own code raises
        raise RoboAlignError(
            f"`{point.value}` cannot be loaded ({type(error).__name__}: {error})",
            where=package_of(point),
            fix="correct or uninstall the package",
        ) from error
