"""Read YAML settings files; refuse duplicate keys, endless aliases and very long numbers."""

from pathlib import Path
from typing import Any

import yaml

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_readable

_LARGEST = 10_000_000  # maximum size of a settings file, in bytes
MOST_NODES = 100_000  # values in one file, each counted once per alias that repeats it


def read_yaml(path: Path, fix: str = "") -> Any:
    """Return the value of a settings file.

    Raises RoboAlignError naming the file and, if known, the line.
    """
    check_readable(path, fix=fix)
    if path.stat().st_size > _LARGEST:
        raise RoboAlignError(
            f"it has {path.stat().st_size:,} bytes, and settings have {_LARGEST:,} at most",
            where=str(path),
            fix=fix,
        )
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise RoboAlignError(f"not valid YAML: {error}", where=str(path), fix=fix) from None
    return parse_yaml(text, where=str(path), fix=fix)


def parse_yaml(text: str, where: str, fix: str = "") -> Any:
    """Return the value of a YAML text. Raises RoboAlignError at `where`."""
    try:
        loader = _Loader(text)  # refuses control characters
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except _Refused as error:
        problem = str(error)
    except RecursionError:
        problem = "not valid YAML: nested too deeply"
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2026-13-01 is a ValueError
        problem = f"not valid YAML: {' '.join(str(error).split())[:300]}"
    raise RoboAlignError(problem, where=where, fix=fix)


class _Refused(Exception):
    """Well-formed YAML that no settings file needs."""


class _Loader(yaml.SafeLoader):
    """Refuse a key that appears twice in a mapping: YAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first:
                raise _Refused(
                    f"duplicate key `{name}` at line {line}; first at line {first[name]}"
                )
            first[name] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Count the values below a node; an aliased value counts once per use."""
    if id(node) in counted:
        if not counted[id(node)]:
            raise _Refused(f"the alias at line {node.start_mark.line + 1} holds itself")
        return counted[id(node)]
    counted[id(node)] = 0
    total = 1
    children = [] if isinstance(node, yaml.ScalarNode) else node.value
    for child in children:
        parts = child if isinstance(child, tuple) else (child,)
        total += sum(_count(part, counted) for part in parts)
        if total > MOST_NODES:
            raise _Refused(f"its aliases make more than {MOST_NODES:,} values")
    counted[id(node)] = total
    return total
