"""What two runs' evaluations wrote down about the world that they measured in."""

from roboalign.cli.comparison.sides import RunSide, leaves

NOT_REFUSED = ("episodes_per_task", "versions")
"""Parts of a protocol that may differ: episodes are compared one by one, and other versions are told."""


def only_a_place(key: str, before: RunSide, after: RunSide) -> bool:
    """Return whether a setting says where something is, and both records say what was there."""
    spec = before.recipe.collect.spec
    written = before.protocol is not None and after.protocol is not None
    return written and key in {f"collect.{spec.section}.{name}" for name in spec.places}


def protocols_differ(before: RunSide, after: RunSide) -> list[str]:
    """Return what the two wrote down differently, such as commits of the simulator."""
    a, b = (dict(leaves(side.protocol or {})) for side in (before, after))
    return [
        f"`{key}` was {a[key]!r} and {b[key]!r}"
        for key in sorted(a.keys() & b.keys())
        if a[key] != b[key] and key.partition(".")[0] not in NOT_REFUSED
    ]
