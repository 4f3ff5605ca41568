"""Define what the numbers of an action mean, and convert explicitly between meanings.

Conventions, with the end effector at position p and orientation R (both in the base frame) before
the action, and at p', R' where the action sends it:

    absolute             p' = position            R' = rotation
    delta, base frame    p' = p + dp              R' = dR R
    delta, tool frame    p' = p + R dp            R' = R dR

The base frame is the fixed frame of the poses: the robot's base, or the simulator's world.
"""

import warnings
from typing import Literal

import numpy as np
from jaxtyping import Float, Num
from pydantic import Field, model_validator
from scipy.spatial.transform import Rotation

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError

RotationForm = Literal[
    "none",
    "euler_xyz",
    "euler_xyz_difference",
    "axis_angle",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "rot6d",
]
GripperCode = Literal["none", "open_positive", "closed_positive", "open_one", "closed_one"]

ROTATION_NAMES: dict[str, tuple[str, ...]] = {
    "none": (),
    "euler_xyz": ("roll", "pitch", "yaw"),
    "euler_xyz_difference": ("roll", "pitch", "yaw"),
    "axis_angle": ("ax", "ay", "az"),
    "quaternion_xyzw": ("qx", "qy", "qz", "qw"),
    "quaternion_wxyz": ("qw", "qx", "qy", "qz"),
    "rot6d": ("r11", "r21", "r31", "r12", "r22", "r32"),
}
# Angles: one unit can be less than a radian.
SCALABLE = ("euler_xyz", "euler_xyz_difference", "axis_angle")
GRIPPER_VALUES = {  # (closed, open)
    "open_positive": (-1.0, 1.0),
    "closed_positive": (1.0, -1.0),
    "open_one": (0.0, 1.0),
    "closed_one": (1.0, 0.0),
}
UNIT_TOLERANCE = 0.01  # a measured quaternion is off by rounding; more: the columns are others
Steps = Float[np.ndarray, "steps action"]
StepNumbers = Float[np.ndarray, "steps numbers"]
Positions = Float[np.ndarray, "steps 3"]
Poses = Num[np.ndarray, "steps 7"]


class ActionSpace(Config):
    """The meaning of each dimension of an action: the arm's first, the gripper's last."""

    control: Literal["end-effector", "joint"]
    """What the arm's numbers control: the pose of the end effector or the angles of the joints."""
    mode: Literal["absolute", "delta", "velocity"]
    """A target, a change from the state before the action, or a rate per second."""
    frame: Literal["base", "tool"] = "base"
    """Axes of a change or rate of the end effector; absolute poses always use base."""
    rotation: RotationForm = "none"
    """`euler_xyz`: extrinsic, R = Rz(yaw) Ry(pitch) Rx(roll). `euler_xyz_difference`: three numbers
    added to the Euler angles of the pose, unlike rotating by them. `axis_angle`: axis times angle.
    `rot6d`: the first column of R, then the second. Radians. `none`: no rotation, or `control` is
    joint."""
    joints: int = Field(0, ge=0)
    """Number of joints; 0 for an end effector."""
    gripper: GripperCode = "none"
    """`open_positive`: +1 open, -1 closed. `closed_positive`: +1 closed, -1 open. `open_one`: 1
    open, 0 closed. `closed_one`: 1 closed, 0 open. In between: partly open. `none`: no gripper."""
    position_scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Meters (for a velocity: per second) in one unit of the position."""
    rotation_scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Radians (for a velocity: per second) in one unit of the rotation, or of a joint."""

    @model_validator(mode="after")
    def _consistent(self) -> "ActionSpace":
        message = fault_of(self)
        if message:
            raise ValueError(message)
        return self

    @property
    def dim(self) -> int:
        return len(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Return x, y, z and the rotation's names, or joint_0, joint_1, ..; then gripper."""
        arm = ("x", "y", "z", *ROTATION_NAMES[self.rotation])
        if self.control == "joint":
            arm = tuple(f"joint_{i}" for i in range(self.joints))
        return arm if self.gripper == "none" else (*arm, "gripper")

    @property
    def position(self) -> slice:
        """The dimensions x, y, z; empty for joint control."""
        return slice(0, 0 if self.control == "joint" else 3)

    @property
    def rotation_part(self) -> slice:
        """The dimensions that `rotation_scale` scales: rotation, joints, or none."""
        return slice(self.position.stop, self.gripper_part.start)

    @property
    def gripper_part(self) -> slice:
        """The last dimension; empty if there is no gripper."""
        return slice(self.dim - (self.gripper != "none"), self.dim)

    def __str__(self) -> str:
        if self.control == "joint":
            return f"{self.mode} angles of {self.joints} joints"
        frame = "" if self.mode == "absolute" else f" in the {self.frame} frame"
        return f"{self.mode} end-effector pose{frame}, rotation {self.rotation}"


def fault_of(space: ActionSpace) -> str:
    """Return the contradiction in these settings; empty if there is none."""
    if space.control == "joint":
        if not space.joints:
            return "joint control needs `joints`, the number of joints"
        if space.rotation != "none" or space.frame != "base" or space.position_scale != 1.0:
            return "`rotation`, `frame` and `position_scale` belong to end-effector control: leave them out for joints"
        return ""
    if space.joints:
        return f"`joints` is {space.joints}, which belongs to joint control: leave it out for an end effector"
    if space.mode == "absolute" and space.frame == "tool":
        return (
            "an absolute pose is in the base frame: `frame` tool goes with mode delta or velocity"
        )
    if space.rotation == "euler_xyz_difference" and (
        space.mode != "delta" or space.frame != "base"
    ):
        return "`rotation` euler_xyz_difference goes with mode delta in the base frame only"
    if space.rotation not in SCALABLE and space.rotation_scale != 1.0:
        return f"`rotation_scale` is {space.rotation_scale}, but `rotation` {space.rotation} has no unit to scale"
    return ""


def convert(
    actions: Num[np.ndarray, "steps {source.dim}"],
    source: ActionSpace,
    target: ActionSpace,
    *,
    poses: Poses | None = None,
) -> Float[np.ndarray, "steps {target.dim}"]:
    """Convert actions [T, D] of one space to another, float32 [T, D'].

    Converts the form of rotation, the gripper's code, the units, and between delta and absolute in
    the base or tool frame. The last, and any change from or to `euler_xyz_difference`, needs
    `poses` [T, 7]: position (meters) and quaternion (x, y, z, w) of the end effector in the base
    frame before each action. Quaternions come out with w >= 0. Gripper values are mapped linearly
    and nothing is clipped: results may exceed the bounds of a target space.

    Raises RoboAlignError if `actions` or `poses` have the wrong shape, are not finite or hold no
    rotation, or if needed poses are missing. Also for what is no change of form: end effector to
    joints or back, a joint delta to a target or back, velocity to anything else, and a rotation or
    gripper that only one of the two has.
    """
    values = _checked(actions, source.dim, "actions")
    check_convertible(source, target)
    if not len(values):
        return np.zeros((0, target.dim), dtype=np.float32)
    arm = (
        rescaled(values, source, target)
        if same_arm(source, target)
        else _moved(values, source, target, poses)
    )
    gripper = recoded(values[:, source.gripper_part], source.gripper, target.gripper)
    return np.concatenate([arm, gripper], axis=1).astype(np.float32)


def check_convertible(source: ActionSpace, target: ActionSpace) -> None:
    """Raise RoboAlignError if this needs kinematics, or would invent or drop something."""
    where = f"{source} -> {target}"
    if source.control != target.control or source.joints != target.joints:
        raise RoboAlignError(
            "this would need the robot's kinematics, which are not in this library",
            where=where,
            fix="use a data set that stores the actions in the target's form",
        )
    for part in ("rotation", "gripper"):
        if (getattr(source, part) == "none") != (getattr(target, part) == "none"):
            raise RoboAlignError(
                f"only one of the two has a {part}: a conversion neither makes up nor drops one",
                where=where,
                fix=f"drop or add the columns of the {part} yourself and say so in the space",
            )
    if same_arm(source, target):
        return
    if "velocity" in (source.mode, target.mode):
        raise RoboAlignError(
            "velocities are not converted: a controller decides what they move",
            where=where,
            fix="keep mode, frame and rotation; units and gripper code may change",
        )
    if source.control == "joint":
        raise RoboAlignError(
            "joint angles before each action are not known here",
            where=where,
            fix="add them to the deltas, or subtract them from the targets, yourself",
        )


def same_arm(source: ActionSpace, target: ActionSpace) -> bool:
    """Return whether the arm's numbers differ at most in their units."""
    return all(
        getattr(source, f) == getattr(target, f)
        for f in ("control", "joints", "mode", "frame", "rotation")
    )


def rescaled(values: Steps, source: ActionSpace, target: ActionSpace) -> StepNumbers:
    """Return the arm's numbers in the target's units."""
    position = values[:, source.position] * (source.position_scale / target.position_scale)
    rotation = values[:, source.rotation_part]
    if source.control == "joint" or source.rotation in SCALABLE:
        rotation = rotation * (source.rotation_scale / target.rotation_scale)
    return np.concatenate([position, rotation], axis=1)


def _moved(
    values: Steps, source: ActionSpace, target: ActionSpace, poses: Poses | None
) -> StepNumbers:
    """Convert through the goal pose; within one mode and frame any pose gives the same."""
    differences = "euler_xyz_difference" in (source.rotation, target.rotation)
    if source.mode == target.mode and source.frame == target.frame and not differences:
        position, rotation = np.zeros((len(values), 3)), Rotation.identity(len(values))
    elif poses is None:
        raise RoboAlignError(
            "the poses before the actions are missing",
            where=f"{source} -> {target}",
            fix="pass poses=[T, 7]: position and quaternion xyzw of the end effector",
        )
    else:
        position, rotation = checked_poses(poses, len(values))
    return action_of(*goal_of(values, source, position, rotation), target, position, rotation)


def goal_of(
    values: Steps, space: ActionSpace, position: Positions, rotation: Rotation
) -> tuple[Positions, Rotation]:
    """Return where actions [T, D] send an end effector, in the base frame like its pose."""
    step = values[:, space.position] * space.position_scale
    if space.rotation == "euler_xyz_difference":
        angles = euler_of_pose(rotation) + values[:, space.rotation_part] * space.rotation_scale
        return position + step, Rotation.from_euler("xyz", angles)
    turn = to_rotation(values[:, space.rotation_part] * space.rotation_scale, space.rotation)
    if space.mode == "absolute":
        return step, turn
    if space.frame == "base":
        return position + step, turn * rotation
    return position + rotation.apply(step), rotation * turn


def action_of(
    goal_position: Positions,
    goal_rotation: Rotation,
    space: ActionSpace,
    position: Positions,
    rotation: Rotation,
) -> StepNumbers:
    """Return the arm's numbers [T, 3 + rotation] that move the end effector to the goal."""
    if space.mode == "absolute":
        step, turn = goal_position, goal_rotation
    elif space.frame == "base":
        step, turn = goal_position - position, goal_rotation * rotation.inv()
    else:
        step, turn = rotation.inv().apply(goal_position - position), rotation.inv() * goal_rotation
    if space.rotation == "euler_xyz_difference":
        angles = (euler_of(goal_rotation) - euler_of_pose(rotation) + np.pi) % (2 * np.pi) - np.pi
    else:
        angles = from_rotation(turn, space.rotation)
    return np.concatenate([step / space.position_scale, angles / space.rotation_scale], axis=1)


def to_rotation(values: StepNumbers, form: str) -> Rotation:
    """Return rotations from [T, n] numbers of this form; `none` gives the identity."""
    if form == "none":
        return Rotation.identity(len(values))
    if form == "euler_xyz":
        return Rotation.from_euler("xyz", values)
    if form == "axis_angle":
        return Rotation.from_rotvec(values)
    if form == "rot6d":
        return Rotation.from_matrix(orthonormal(values))
    check_nonzero(np.linalg.norm(values, axis=1), form)
    return Rotation.from_quat(values if form == "quaternion_xyzw" else values[:, [1, 2, 3, 0]])


def from_rotation(rotation: Rotation, form: str) -> StepNumbers:
    """Invert `to_rotation`: float64 [T, n]."""
    if form == "none":
        return np.zeros((len(rotation), 0))
    if form == "euler_xyz":
        return euler_of(rotation)
    if form == "axis_angle":
        return rotation.as_rotvec()
    if form == "rot6d":
        return rotation.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
    quaternion = rotation.as_quat(canonical=True)
    return quaternion if form == "quaternion_xyzw" else quaternion[:, [3, 0, 1, 2]]


def orthonormal(values: Float[np.ndarray, "steps 6"]) -> Float[np.ndarray, "steps 3 3"]:
    """Return rotation matrices [T, 3, 3] from two non-orthogonal columns [T, 6] (Gram-Schmidt)."""
    first, second = values[:, :3], values[:, 3:]
    length = np.linalg.norm(first, axis=1, keepdims=True)
    check_nonzero(length[:, 0], "rot6d")
    first = first / length
    second = second - (first * second).sum(axis=1, keepdims=True) * first
    length = np.linalg.norm(second, axis=1, keepdims=True)
    check_nonzero(length[:, 0], "rot6d")
    second = second / length
    return np.stack([first, second, np.cross(first, second)], axis=2)


def euler_of(rotation: Rotation) -> Float[np.ndarray, "steps 3"]:
    """Return extrinsic xyz angles [T, 3], pitch within 90 degrees; at exactly 90, yaw is 0."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gimbal lock")
        return rotation.as_euler("xyz")


def euler_of_pose(rotation: Rotation) -> Float[np.ndarray, "steps 3"]:
    """Return the angles that Euler differences start from; refuse undetermined ones."""
    angles = euler_of(rotation)
    locked = np.flatnonzero(np.pi / 2 - np.abs(angles[:, 1]) < 1e-6)
    if len(locked):
        raise RoboAlignError(
            f"at step {locked[0]} the pitch is a right angle: Euler differences mean nothing there",
            where="poses",
            fix="use a space with another form of rotation",
        )
    return angles


def recoded(values: StepNumbers, source: str, target: str) -> StepNumbers:
    """Return gripper values [T, 0 or 1] in another code; linear, so half open stays half open."""
    if source == target:
        return values
    closed, opened = GRIPPER_VALUES[source]
    openness = (values - closed) / (opened - closed)
    closed, opened = GRIPPER_VALUES[target]
    return closed + openness * (opened - closed)


def _checked(values: np.ndarray, width: int, where: str) -> Float[np.ndarray, "steps {width}"]:
    """Return float64 [T, width]; RoboAlignError on another shape or non-finite values."""
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] != width or array.dtype.kind not in "fiu":
        raise RoboAlignError(
            f"{array.dtype} of shape {list(array.shape)}, expected numbers [T, {width}]",
            where=where,
            fix="check that the space is the one of this data set",
        )
    if not np.isfinite(array).all():
        step, column = np.argwhere(~np.isfinite(array))[0]
        raise RoboAlignError(
            f"not finite at step {step}, column {column}", where=where, fix="drop that episode"
        )
    return array.astype(np.float64)


def checked_poses(poses: Poses, length: int) -> tuple[Positions, Rotation]:
    """Return positions [T, 3] and rotations of poses [T, 7]."""
    values = _checked(poses, 7, "poses")
    if len(values) != length:
        raise RoboAlignError(
            f"{len(values)} poses for {length} actions",
            where="poses",
            fix="give one for each action",
        )
    norms = np.linalg.norm(values[:, 3:], axis=1)
    off = np.flatnonzero(np.abs(norms - 1) > UNIT_TOLERANCE)
    if len(off):
        raise RoboAlignError(
            f"the quaternion of step {off[0]} has length {norms[off[0]]:.3g}, not 1",
            where="poses",
            fix="order the columns x, y, z, qx, qy, qz, qw",
        )
    return values[:, :3], Rotation.from_quat(values[:, 3:])


def check_nonzero(lengths: Float[np.ndarray, " steps"], form: str) -> None:
    """Raise RoboAlignError if a vector that must give a direction has length zero."""
    zero = np.flatnonzero(lengths < 1e-8)
    if len(zero):
        raise RoboAlignError(
            f"the {form} of step {zero[0]} is no rotation: a vector in it has length zero",
            where="actions",
            fix="check that the space is the one of this data set",
        )
