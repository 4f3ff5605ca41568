"""Represent failures as values: what cannot be read or used is counted and named, the rest goes on.

A failure that ends the command is a `RoboAlignError` instead.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A broken item: where it is, what is wrong with it, and how to repair it."""

    where: str
    problem: str
    fix: str = ""


@dataclass(frozen=True)
class Refused:
    """An intact item that cannot be used or answered, and why."""

    reason: str
