"""What installed packages add: entry points, read by name and imported when they are used."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from roboalign.core.errors import RoboAlignError


def installed(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of every installed package in this group, without importing one."""
    return {point.name: point for point in entry_points(group=group)}


def package_of(point: EntryPoint) -> str:
    """The package of an entry point, for messages."""
    name = point.dist.name if point.dist else "?"
    return f"package {name} (entry point {point.group}: {point.name})"


def load_plugin(point: EntryPoint) -> Any:
    """What an entry point names. Raises RoboAlignError, naming the package, where its code fails."""
    try:
        return point.load()
    except Exception as error:  # whatever the package's own code raises
        raise RoboAlignError(
            f"`{point.value}` cannot be loaded ({type(error).__name__}: {error})",
            where=package_of(point),
            fix="correct or uninstall the package",
        ) from error
