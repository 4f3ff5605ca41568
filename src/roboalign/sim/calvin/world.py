"""One running simulation of CALVIN: begin in a given state, step, look, and ask the oracle."""

from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import EnvironmentCrash
from roboalign.sim.calvin.chains import BLOCK_COLORS, Start
from roboalign.sim.calvin.checkout import Checkout
from roboalign.sim.calvin.config import CalvinConfig
from roboalign.sim.calvin.library import BULLET, build_simulation, close, oracle
from roboalign.sim.images import resize_with_padding

_PLACED_WITHIN = 0.005
"""How far a block may be from where it was put after the one physics step of a reset, meters."""


class Simulation:
    """A simulation of one scene. With `config.fresh` every `begin` builds it again."""

    def __init__(self, checkout: Checkout, scene: str, config: CalvinConfig) -> None:
        self.checkout, self.scene, self.config = checkout, scene, config
        self.oracle = oracle(checkout)
        self.simulation: Any = None

    def begin(self, start: Start) -> None:
        """Put robot, doors, lights and blocks where `start` says. Raises RoboAlignError if a block
        is elsewhere then: its slot was another block's."""
        if self.config.fresh:
            self.close()
        if self.simulation is None:
            self.simulation = build_simulation(self.checkout, self.scene, self.config)
            self._cameras = list(self.simulation.cameras)
            self.simulation.cameras = []
        blocks = [start.blocks[_color(name)] for name in self.block_order()]
        self._enter()
        self.simulation.reset(
            robot_obs=np.array(start.robot), scene_obs=np.concatenate([start.things, *blocks])
        )
        found = self.info()["scene_info"]["movable_objects"]
        for color in BLOCK_COLORS:
            wanted = start.blocks[color][:3]
            where = found[f"block_{color}"]["current_pos"]
            if not np.allclose(where, wanted, atol=_PLACED_WITHIN):
                raise RoboAlignError(
                    f"the {color} block is at {np.round(where, 3).tolist()}, not at "
                    f"{np.round(wanted, 3).tolist()}",
                    where=f"scene {self.scene}",
                    fix="report it with the commits of the checkout",
                )

    def block_order(self) -> tuple[str, ...]:
        """Return the blocks in the order of the simulation's slots."""
        return tuple(thing.name for thing in self.simulation.scene.movable_objects)

    def step(self, action: np.ndarray) -> None:
        """Execute an action [7] for one control step, 1/30 s. The gripper opens where the last number
        is positive.

        Raises EnvironmentCrash if the action or the state after it is not finite.
        """
        if np.shape(action) != (7,) or not np.isfinite(action).all():
            raise EnvironmentCrash(f"an action is 7 finite numbers, not {action}")
        command = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        command[6] = 1.0 if command[6] > 0 else -1.0
        self._enter()
        self.simulation.step(command)
        if not np.isfinite(self.robot()).all():
            raise EnvironmentCrash("the simulation diverged: the robot's state is not finite")

    def robot(self) -> np.ndarray:
        """Return float64 [15]: position, Euler angles, opening, seven joints, gripper command."""
        self._enter()
        values = self.simulation.get_state_obs()["robot_obs"]
        return np.asarray(values, np.float64)

    def commanded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the position and the Euler angles that the next action adds to."""
        robot = self.simulation.robot
        return np.array(robot.target_pos, np.float64), np.array(robot.target_orn, np.float64)

    def info(self) -> dict[str, Any]:
        """Return what the oracle compares."""
        self._enter()
        info: dict[str, Any] = self.simulation.get_info()
        return info

    def solved(self, task: str, start: dict[str, Any], now: dict[str, Any]) -> bool:
        """Return whether the oracle finds `task` done between two infos."""
        return task in self.oracle.get_task_info_for_set(start, now, {task})

    def done(self, start: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
        """Return every task that the oracle finds done between two infos, by name."""
        return tuple(sorted(self.oracle.get_task_info(start, now)))

    def box(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the corners of a part of the table, `button` for its `button_link`: two float64
        [3], meters."""
        table = self.info()["scene_info"]["fixed_objects"]["table"]
        link = table["links"][f"{part}_link"]
        low, high = BULLET.getAABB(table["uid"], link, physicsClientId=self.simulation.cid)
        return np.array(low), np.array(high)

    def images(self) -> dict[str, np.ndarray]:
        """Draw the configured cameras: name -> uint8 [size, size, 3]."""
        self._enter()
        self.simulation.cameras = [
            camera for camera in self._cameras if camera.name in self.config.cameras
        ]
        try:
            drawn = self.simulation.get_camera_obs()[0]
        finally:
            self.simulation.cameras = []
        size = self.config.image_size
        return {
            name: resize_with_padding(np.asarray(drawn[f"rgb_{name}"], np.uint8), size)
            for name in self.config.cameras
        }

    def projection(self, camera: str, size: int) -> np.ndarray:
        """Return the matrix [3, 4] from world points to the pixels of an image of `size`."""
        (found,) = [one for one in self._cameras if one.name == camera]
        view, lens = (
            np.array(values).reshape(4, 4).T
            for values in (found.viewMatrix, found.projectionMatrix)
        )
        x, y, _, depth = lens @ view
        return np.stack([size / 2 * (depth + x), size / 2 * (depth - y), depth])

    def close(self) -> None:
        """Free the simulation."""
        if self.simulation is not None:
            self._enter()
            close(self.simulation)
        self.simulation = None

    def _enter(self) -> None:
        BULLET.client = self.simulation.cid


def _color(block: str) -> str:
    return block.removeprefix("block_")
