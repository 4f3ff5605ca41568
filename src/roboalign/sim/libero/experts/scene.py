"""Read the privileged state of a LIBERO scene for the experts: every collision box, every body, the
hand, the goal."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPACING = 0.005
"""Distance between the points that represent a collision box, meters."""
WIDE_OPEN = 0.075
"""Distance between the fingertips, meters, above which they hold nothing: they may be touching the
walls of a basket."""
_ROBOT = ("robot0", "gripper0", "mount0")


@dataclass(frozen=True)
class Joint:
    """A hinge (rad) or slide (meters) of a fixture: its value, the axis and a point on it in the world, meters."""

    hinge: bool
    value: float
    axis: Floats
    anchor: Floats


class LiberoScene:
    """Reads a robosuite simulation of LIBERO at its current state. World coordinates in meters, z up."""

    def __init__(self, simulation: Any) -> None:
        self.simulation = simulation
        self.model: mujoco.MjModel = simulation.sim.model._model
        self.ground = float(simulation.workspace_offset[2])
        self._hand = simulation.robots[0].eef_site_id
        self._owner = [self._root(int(body)) for body in self.model.geom_bodyid]
        self._solid = [geom for geom in range(self.model.ngeom) if self._is_solid(geom)]
        self._fingers = [
            {
                geom
                for geom in range(self.model.ngeom)
                if str(self.model.geom(geom).name).startswith(f"gripper0_finger{side}_")
            }
            for side in (1, 2)
        ]
        self._local = {geom: _box_points(self.model.geom_size[geom]) for geom in self._solid}

    @property
    def data(self) -> mujoco.MjData:
        data: mujoco.MjData = self.simulation.sim.data._data
        return data

    def _root(self, body: int) -> str:
        """Return the name of the body's ancestor directly below the world."""
        while self.model.body_parentid[body] != 0:
            body = int(self.model.body_parentid[body])
        return str(self.model.body(body).name)

    def _is_solid(self, geom: int) -> bool:
        box = self.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX
        arena = (
            self._owner[geom] in ("world", "table", "floor")
            or max(self.model.geom_size[geom]) > 0.4
        )
        robot = self._owner[geom].startswith(_ROBOT)
        collides = self.model.geom_contype[geom] or self.model.geom_conaffinity[geom]
        return bool(box and collides and not arena and not robot)

    def hand(self) -> tuple[Floats, Floats]:
        """Return the position [3] of the point between the fingertips and the orientation [3, 3].

        Its columns are the fingers' closing axis, the hand's thin side and the approach.
        """
        site = self.data.site(self._hand)
        return site.xpos.copy(), site.xmat.reshape(3, 3).copy()

    def base(self) -> Floats:
        """Return the position [3] of the robot's base, meters."""
        return np.array(self.data.body("robot0_base").xpos)

    def opening(self) -> float:
        """Return the distance between the fingertips, meters: 0 (closed) to 0.08."""
        fingers = [self.data.joint(f"gripper0_finger_joint{side}").qpos[0] for side in (1, 2)]
        return float(fingers[0] - fingers[1])

    def held(self) -> str | None:
        """Return the root body's name of what both fingers touch; None if they are wide open, and
        never a table."""
        if self.opening() > WIDE_OPEN:
            return None
        touched: tuple[set[str], set[str]] = (set(), set())
        for geoms in self.data.contact.geom:
            owners = [self._owner[geom] for geom in geoms]
            for finger, things in zip(self._fingers, touched, strict=True):
                things.update(
                    owner
                    for owner, geom in zip(owners, reversed(geoms), strict=True)
                    if geom in finger
                )
        return min(
            touched[0] & touched[1] & {self._owner[geom] for geom in self._solid}, default=None
        )

    def position(self, name: str) -> Floats:
        """Return the origin [3] of an object's body, or the center of a region."""
        if name in self.simulation.obj_body_id:
            return np.array(self.data.xpos[self.simulation.obj_body_id[name]])
        return np.array(self.data.site(name).xpos)

    def geoms(self, name: str) -> list[int]:
        """Return the collision boxes of an object or fixture, with all its parts."""
        root = self._root(self.simulation.obj_body_id[name])
        return [geom for geom in self._solid if self._owner[geom] == root]

    def middle(self, geoms: Sequence[int]) -> Floats:
        """Return the middle [3] of the smallest upright box around collision boxes."""
        centres = self.data.geom_xpos[geoms]
        turns = np.abs(self.data.geom_xmat[geoms].reshape(-1, 3, 3))
        reach = (turns @ self.model.geom_size[geoms][..., None])[..., 0]
        return np.asarray(((centres - reach).min(axis=0) + (centres + reach).max(axis=0)) / 2)

    def points(self, geoms: Sequence[int]) -> Floats:
        """Return points [N, 3] on the surfaces of collision boxes."""
        if not geoms:
            return np.zeros((0, 3))
        data = self.data
        return np.concatenate(
            [
                self._local[geom] @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
                for geom in geoms
            ]
        )

    def around(self, excluded: Collection[int] = ()) -> Floats:
        """Return points [N, 3] of every collision box except the robot's, the arena's and the
        `excluded`."""
        return self.points([geom for geom in self._solid if geom not in excluded])

    def joint(self, name: str) -> Joint:
        """Return the current state of a fixture's joint."""
        number = self.model.joint(name).id
        hinge = self.model.jnt_type[number] == mujoco.mjtJoint.mjJNT_HINGE
        value = float(self.data.qpos[self.model.jnt_qposadr[number]])
        return Joint(
            bool(hinge), value, self.data.xaxis[number].copy(), self.data.xanchor[number].copy()
        )

    def moved_by(self, joint: str) -> list[int]:
        """Return the collision boxes of the body that a joint moves."""
        body = self.model.jnt_bodyid[self.model.joint(joint).id]
        return [geom for geom in self._solid if self.model.geom_bodyid[geom] == body]

    def joint_of(self, name: str) -> str:
        """Return the joint that moves a region (a drawer) or a fixture (a door, a knob)."""
        joints = self.simulation.get_object(name).joints
        return str(joints[0])

    def goals(self) -> list[list[str]]:
        """Return the conjunction of goal predicates, each as [predicate, object] or [predicate,
        object, target]."""
        return [list(map(str, goal)) for goal in self.simulation.parsed_problem["goal_state"]]

    def is_drawer(self, region: str) -> bool:
        """Return whether a goal's target is a region that slides with a drawer."""
        site = self.simulation.object_sites_dict.get(region)
        return bool(getattr(site, "joints", None))

    def parent(self, region: str) -> str:
        """Return the object or fixture that a region belongs to."""
        return str(self.simulation.object_sites_dict[region].parent_name)

    def is_behind_door(self, region: str) -> bool:
        """Return whether a region is inside a fixture with a hinged door, a microwave."""
        if region not in self.simulation.object_sites_dict:
            return False
        fixture = self.simulation.fixtures_dict.get(self.parent(region))
        joints: list[str] = getattr(fixture, "joints", None) or []
        return bool(joints and self.joint(joints[0]).hinge)

    def holds(self, goal: list[str]) -> bool:
        """Return whether one goal predicate is true now."""
        return bool(self.simulation._eval_predicate(goal))


def _box_points(half: Floats) -> Floats:
    """Return points [N, 3] on a box of half sizes [3], at most SPACING apart."""
    axes = [np.linspace(-size, size, int(np.ceil(2 * size / SPACING)) + 1) for size in half]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    surface = (np.abs(grid) >= half - 1e-9).any(axis=1)
    return np.asarray(grid[surface])
