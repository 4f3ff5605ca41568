"""Name the things of a LIBERO scene for questions, and decide which tasks questions can be asked
about.

LIBERO's names are those of its files (`akita_black_bowl_1`, `wooden_cabinet_1_top_region`); the
nouns are the words of its instructions. A noun of an object has no `of`, `the` or `and`, because
scenes are distinguished by words of objects.
"""

import re
from collections.abc import Mapping

from roboalign.core.errors import RoboAlignError
from roboalign.sim.libero.suites import bddl_file, find_task

Goal = list[str]
"""[predicate, object] or [predicate, object, target], in LIBERO's names."""

_KINDS = {
    "akita_black_bowl": "black bowl",
    "chefmate_8_frypan": "frying pan",
    "porcelain_mug": "white mug",
    "white_yellow_mug": "white yellow mug",
    "red_coffee_mug": "red mug",
    "new_salad_dressing": "salad dressing",
    "glazed_rim_porcelain_ramekin": "ramekin",
    "cookies": "cookie box",
    "wooden_tray": "tray",
    "flat_stove": "stove",
    "wooden_cabinet": "cabinet",
    "white_cabinet": "cabinet",
    "wooden_two_layer_shelf": "shelf",
    "desk_caddy": "caddy",
}
"""Kinds whose instructions use other words than the file's name."""
_PARTS = {"cabinet": "drawer handle", "stove": "stove knob", "microwave": "microwave door"}
"""The part of a fixture that a task may be about."""
_TABLES = ("table", "floor")
_REGIONS = {
    "contain_region": "{}",
    "cook_region": "{}",
    "heating_region": "inside of the {}",
    "top_side": "top of the {}",
    "left_contain_region": "left compartment of the {}",
    "right_contain_region": "right compartment of the {}",
    "front_contain_region": "front compartment of the {}",
    "back_contain_region": "back compartment of the {}",
}
_LEVELS = {
    "shelf": {"top_region": "{}", "bottom_region": "place under the {}"},
    "wine rack": {"top_region": "{}"},
    "cabinet": {f"{level}_region": f"{level} drawer" for level in ("top", "middle", "bottom")},
}
"""Meaning of the same region name on different things."""
_BESIDE = {
    "left": "to the left of",
    "right": "to the right of",
    "front": "in front of",
    "back": "behind",
}


def kind_noun(kind: str) -> str:
    """`akita_black_bowl` -> `black bowl`, `wine_rack` -> `wine rack`."""
    return _KINDS.get(kind, kind.replace("_", " "))


def point_noun(name: str, predicate: str, kinds: Mapping[str, str]) -> str:
    """Return the noun for the point of a goal: of an object or fixture, of a region, or of the part
    that is moved.

    `kinds`: instance -> kind of everything in the scene. `predicate`: what is done with `name`;
    empty for a target.
    """
    owner = owner_of(name, kinds)
    thing, rest = kind_noun(kinds[owner]), name[len(owner) + 1 :]
    if predicate in ("open", "close") and rest:
        return f"{rest.partition('_')[0]} {_PARTS['cabinet']}"
    if predicate in ("open", "close", "turnon", "turnoff"):
        return _PARTS[thing]
    if not rest:
        return thing
    if thing.endswith(_TABLES):  # living_room_table_plate_right_region
        neighbour, _, side = rest.removesuffix("_region").rpartition("_")
        return (
            f"place {_BESIDE[side]} the {kind_noun(neighbour)}" if side in _BESIDE else _plain(rest)
        )
    return {**_REGIONS, **_LEVELS.get(thing, {})}.get(
        rest, f"{_plain(rest)} of the {thing}"
    ).format(thing)


def owner_of(name: str, kinds: Mapping[str, str]) -> str:
    """Return the instance that the name of an instance or of its region begins with. Raises
    RoboAlignError if there is none."""
    owners = [instance for instance in kinds if name == instance or name.startswith(f"{instance}_")]
    if not owners:
        raise RoboAlignError(
            f"{name!r} is of nothing in the scene", where="LIBERO task", fix="check its bddl file"
        )
    return max(owners, key=len)


def scene_nouns(kinds: Mapping[str, str]) -> str:
    """Return everything that the scene shows, with parts of fixtures, without tables: `black bowl,
    cabinet, drawer handle`."""
    nouns = {kind_noun(kind) for kind in kinds.values() if not kind.endswith(_TABLES)}
    return ", ".join(sorted(nouns | {_PARTS[noun] for noun in nouns if noun in _PARTS}))


def require_alignable(task: str) -> None:
    """Raise RoboAlignError if questions about the task would not have a unique right answer.

    A task is alignable if its goal is one predicate, if each thing it names is the only one of its
    kind in the scene, and if the instruction says neither left nor right. LIBERO means left and
    right as seen by someone who faces the robot; questions mean the robot's own.
    """
    goals, kinds = read_task(task)
    fix = "leave it out of collect.align_tasks"
    if len(goals) != 1:
        raise RoboAlignError(
            f"its goal has {len(goals)} parts, and questions know one object and one goal",
            where=task,
            fix=fix,
        )
    for name in goals[0][1:]:
        kind = kinds[owner_of(name, kinds)]
        same = sum(kind_noun(other) == kind_noun(kind) for other in kinds.values())
        if same > 1:
            raise RoboAlignError(
                f"its scene has {same} of `{kind_noun(kind)}`: a question cannot say which",
                where=task,
                fix=fix,
            )
    if side := re.search(r"\b(left|right)\b", find_task(task).instruction):
        raise RoboAlignError(
            f"its `{side[1]}` is that of one who faces the robot, questions mean the robot's",
            where=task,
            fix=fix,
        )


def read_task(task: str) -> tuple[list[Goal], dict[str, str]]:
    """Read (goal predicates, instance -> kind of all objects and fixtures) from the task's file;
    nothing is simulated."""
    bddl = bddl_file(find_task(task).name)
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    problem = robosuite_parse_problem(str(bddl))
    return [list(map(str, goal)) for goal in problem["goal_state"]], instances(problem)


def instances(problem: Mapping[str, Mapping[str, list[str]]]) -> dict[str, str]:
    """Return instance -> kind of all objects and fixtures of LIBERO's parsed problem."""
    groups = (problem["objects"], problem["fixtures"])
    return {name: kind for group in groups for kind, names in group.items() for name in names}


def _plain(name: str) -> str:
    return name.removesuffix("_region").replace("_", " ")
