"""Define the action spaces of common data sets and simulators, each with its source in their code.

Commands are bounded at the source: LIBERO, robosuite and Meta-World clip to [-1, 1], CALVIN stores
`rel_actions` clipped the same way, and DROID shortens a rotation or translation longer than 1.
`convert` clips nothing.
"""

import difflib

from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError

# robosuite: controllers/config/osc_pose.json (0.05 m, 0.5 rad), utils/control_utils.py (dR R, added position),
# models/grippers/panda_gripper.py (1 closed, -1 open). Before version 1.5 the axes are the world's, then the base's.
OSC_POSE = ActionSpace(
    control="end-effector",
    mode="delta",
    rotation="axis_angle",
    gripper="closed_positive",
    position_scale=0.05,
    rotation_scale=0.5,
)

KNOWN: dict[str, ActionSpace] = {
    # bridge_data_robot: widowx_envs/base/robot_base_env.py (delta times target, gripper 1 open);
    # widowx_envs/utils/transformation_utils.py (about the end effector, world axes, R = Rz Ry Rx)
    "bridge": ActionSpace(
        control="end-effector", mode="delta", rotation="euler_xyz", gripper="open_one"
    ),
    # openvla: prismatic/vla/datasets/rlds/utils/data_utils.py, relabel_bridge_actions (subtracts following states)
    "bridge_relabelled": ActionSpace(
        control="end-effector", mode="delta", rotation="euler_xyz_difference", gripper="open_one"
    ),
    # droid: droid/franka/robot.py (create_action_dict; gripper width is 1 - command), droid/misc/transformations.py.
    # The RLDS builder writes these numbers as `action` too, though the feature's description says joint velocities.
    "droid_cartesian_position": ActionSpace(
        control="end-effector", mode="absolute", rotation="euler_xyz", gripper="closed_one"
    ),
    # droid: droid/robot_ik/robot_ik_solver.py (max_lin_delta, max_rot_delta). Called a velocity there, but it is the
    # change within one step in these units: franka/robot.py adds it to the pose to get the position.
    "droid_cartesian_velocity": ActionSpace(
        control="end-effector",
        mode="delta",
        rotation="euler_xyz",
        gripper="closed_one",
        position_scale=0.075,
        rotation_scale=0.15,
    ),
    # openvla: prismatic/vla/datasets/rlds/oxe/utils/droid_utils.py, droid_baseact_transform (1 - gripper_position)
    "droid_oxe": ActionSpace(
        control="end-effector",
        mode="delta",
        rotation="euler_xyz",
        gripper="open_one",
        position_scale=0.075,
        rotation_scale=0.15,
    ),
    # droid: droid/franka/robot.py, create_action_dict
    "droid_joint_position": ActionSpace(
        control="joint", mode="absolute", joints=7, gripper="closed_one"
    ),
    # droid: droid/robot_ik/robot_ik_solver.py (max_joint_delta); a step's change, as with the cartesian velocity
    "droid_joint_velocity": ActionSpace(
        control="joint", mode="delta", joints=7, gripper="closed_one", rotation_scale=0.2
    ),
    # LIBERO: libero/libero/envs/env_wrapper.py (robosuite's default OSC_POSE)
    "libero": OSC_POSE,
    # robosuite: see OSC_POSE above. robomimic's files name the controller in `env_args`: check that
    # it is this one.
    "robomimic_osc_pose": OSC_POSE,
    # calvin: dataset/README.md (world frame, gripper 1 open); calvin_env: calvin_env/utils/utils.py,
    # to_relative_action, and calvin_env/robot/robot.py, relative_to_absolute (0.02 m, 0.05 rad; Euler angles are added,
    # not composed). A rollout adds to the environment's last target; the data set counts from the measured pose.
    "calvin_relative": ActionSpace(
        control="end-effector",
        mode="delta",
        rotation="euler_xyz_difference",
        gripper="open_positive",
        position_scale=0.02,
        rotation_scale=0.05,
    ),
    # calvin: dataset/README.md (world frame, Euler x, y, z)
    "calvin_absolute": ActionSpace(
        control="end-effector", mode="absolute", rotation="euler_xyz", gripper="open_positive"
    ),
    # Metaworld: metaworld/sawyer_xyz_env.py (action_scale 1/100; added to the last target, the mocap body);
    # metaworld/policies/sawyer_pick_place_v3_policy.py (grab_effort 1 grasps)
    "metaworld": ActionSpace(
        control="end-effector", mode="delta", gripper="closed_positive", position_scale=0.01
    ),
}


def known_space(name: str) -> ActionSpace:
    """Return the known action space of this name.

    Raises RoboAlignError with the nearest name if there is none.
    """
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        fix = (
            f"did you mean {near[0]}?"
            if near
            else f"known: {', '.join(KNOWN)}; or write out the space's fields"
        )
        raise RoboAlignError(
            f"no action space is known by this name: {name!r}", where="action_space", fix=fix
        )
    return KNOWN[name]
