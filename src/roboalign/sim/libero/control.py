"""Compute the operational-space control of LIBERO's arm as robosuite 1.4.0 does, in less than half
of its time.

For each of the 25 simulation steps of an action, robosuite computes the whole dynamics three times
(twice to read the arm's state, once to advance it) and looks every body up by name. What the
controller reads depends only on positions and velocities. So here MuJoCo's step is split in two
(`mj_step1`, `mj_step2`) with the control in between, and the indices are looked up once. The
controller's matrices are robosuite's own compiled functions: in the same state the torques are
identical to the last bit. The state after a step is not quite identical. MuJoCo's iterative solver
starts from its last solution, and robosuite's two extra solutions refine it by about 1e-15. Later
states differ by as much as contacts amplify that.
"""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_GRIPPER = np.array([-1.0, 1.0])
"""Directions in which the two fingers' commands move when the gripper closes."""


class ArmControl:
    """Drives the arm of a robosuite simulation whose controller is OSC_POSE with fixed gains, as in LIBERO."""

    def __init__(self, simulation: Any) -> None:
        from robosuite.utils.control_utils import (
            nullspace_torques,
            opspace_matrices,
            orientation_error,
        )

        self._matrices, self._posture, self._rotation = (
            opspace_matrices,
            nullspace_torques,
            orientation_error,
        )
        self.simulation = simulation
        self._substeps = int(simulation.control_timestep / simulation.model_timestep)

    def reset(self) -> None:
        """Look up what belongs to the episode that just began: robosuite makes a new controller at
        each reset."""
        robot = self.simulation.robots[0]
        self.robot, self.controller = robot, robot.controller
        self.model: mujoco.MjModel = self.simulation.sim.model._model
        self.data: mujoco.MjData = self.simulation.sim.data._data
        self._site = self.model.site(self.controller.eef_name).id
        self._qpos, self._qvel = (
            np.array(index) for index in (self.controller.qpos_index, self.controller.qvel_index)
        )
        self._joints = np.array(robot._ref_joint_actuator_indexes)
        self._fingers = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._low, self._high = (
            self.model.actuator_ctrlrange[self._joints, side] for side in (0, 1)
        )
        finger_range = self.model.actuator_ctrlrange[self._fingers]
        self._finger_middle = 0.5 * (finger_range[:, 1] + finger_range[:, 0])
        self._finger_half = 0.5 * (finger_range[:, 1] - finger_range[:, 0])
        self._mass = np.zeros((self.model.nv, self.model.nv))
        self._jacobian = np.zeros((2, 3, self.model.nv))

    def step(self, action: _Floats) -> None:
        """Execute one action [7] in [-1, 1]: 25 simulation steps of 2 ms. Raises what MuJoCo and NumPy raise."""
        closing = self.robot.gripper.speed * np.sign(action[6:])
        for substep in range(self._substeps):
            mujoco.mj_step1(self.model, self.data)
            torques = self._torques_to(action[:6]) if substep == 0 else self._torques()
            self.data.ctrl[self._joints] = np.clip(torques, self._low, self._high)
            gripper = self.robot.gripper
            gripper.current_action = np.clip(gripper.current_action + _GRIPPER * closing, -1.0, 1.0)
            self.data.ctrl[self._fingers] = (
                self._finger_middle + self._finger_half * gripper.current_action
            )
            mujoco.mj_step2(self.model, self.data)

    def _torques_to(self, action: _Floats) -> _Floats:
        """Set the hand's goal, relative to its current pose, and return the torques [7] toward it.

        After a reset, robosuite's controller still holds the state of that reset. If a stored state
        was set since, the first goal is relative to a pose that the arm has left. Published results
        include this.
        """
        stale = not self.controller.new_update
        self.controller.set_goal(action)
        torques: _Floats = np.array(self.controller.run_controller()) if stale else self._torques()
        self.controller.new_update = True
        return torques

    def _torques(self) -> _Floats:
        """Return the arm's torques [7] in this state (Khatib 1987; gains and nullspace posture as
        robosuite sets them)."""
        data, controller = self.data, self.controller
        mujoco.mj_jacSite(self.model, data, self._jacobian[0], self._jacobian[1], self._site)
        velocity, spin = np.dot(self._jacobian[0], data.qvel), np.dot(self._jacobian[1], data.qvel)
        linear, angular = self._jacobian[0][:, self._qvel], self._jacobian[1][:, self._qvel]
        full = np.vstack([linear, angular])
        mujoco.mj_fullM(self.model, self._mass, data.qM)
        mass = self._mass[self._qvel, :][:, self._qvel]
        rotation = self._rotation(
            np.array(controller.goal_ori), data.site_xmat[self._site].reshape(3, 3).copy()
        )
        kp, kd = controller.kp, controller.kd
        force = (controller.goal_pos - data.site_xpos[self._site]) * kp[:3] + -velocity * kd[:3]
        torque = rotation * kp[3:6] + -spin * kd[3:6]
        _, for_position, for_rotation, nullspace = self._matrices(mass, full, linear, angular)
        wrench = np.concatenate([np.dot(for_position, force), np.dot(for_rotation, torque)])
        torques = np.dot(full.T, wrench) + data.qfrc_bias[self._qvel]
        positions, velocities = data.qpos[self._qpos], data.qvel[self._qvel]
        return torques + self._posture(
            mass, nullspace, controller.initial_joint, positions, velocities
        )
