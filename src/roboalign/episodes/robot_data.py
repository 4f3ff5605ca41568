"""Read robot data sets of any format as one stream of `Episode`s.

What cannot be read is named and counted.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode


@dataclass(frozen=True)
class About:
    """What a data set says about itself before its episodes are read."""

    action_names: tuple[str, ...] = ()
    """Its names of the dimensions of its actions; () if it has none."""
    state_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a user must know about how it is read, one sentence each."""
    episodes: int | None = None
    """Its number of episodes; None if unknown before they are read."""


class RobotData:
    """The episodes of one data set, read one at a time: memory holds only the current one.

    `action_names` and `state_names` are the data set's own names of the dimensions, empty if it has
    none. Each pass reads the data again and fills `faults`. With `strict`, the first fault raises
    RoboAlignError instead.
    """

    def __init__(
        self,
        name: str,
        format: str,
        read: Callable[[], Iterator[Episode | Fault]],
        *,
        strict: bool = False,
        action_names: tuple[str, ...] = (),
        state_names: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        expected: int | None = None,
        path: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`notes`: what a user must know about how it is read. `expected`: its number of episodes,
        None if unknown. `path` and the reader's `options` are its origin."""
        self.name, self.format, self.read, self.strict = name, format, read, strict
        self.action_names, self.state_names = action_names, state_names
        self.notes, self.expected = notes, expected
        self.path, self.options = path, dict(options or {})
        self.faults: list[Fault] = []

    def through(self, read: Callable[[], Iterator[Episode | Fault]]) -> "RobotData":
        """Return the same data set with episodes from another function."""
        other = copy.copy(self)
        other.read, other.faults = read, []
        return other

    def __iter__(self) -> Iterator[Episode]:
        self.faults = []
        for item in self.read():
            if isinstance(item, Episode):
                yield item
            elif self.strict:
                raise RoboAlignError(
                    item.problem,
                    where=item.where,
                    fix=item.fix
                    or "drop this episode, or read "
                    "without --strict: it is then left out and counted",
                )
            else:
                self.faults.append(item)
