"""Outcomes that are values: what could not be read or used is counted and named, and the rest goes on.

What ends the command is a `RoboAlignError` instead.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Something that is broken: where it is, what is wrong with it, and how to repair it."""

    where: str
    problem: str
    fix: str = ""


@dataclass(frozen=True)
class Refused:
    """Something whole that cannot be used or answered, and why."""

    reason: str
