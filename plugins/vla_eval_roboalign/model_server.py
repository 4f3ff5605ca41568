# /// script
# requires-python = ">=3.11"
# dependencies = ["vla-eval==0.8.0", "roboalign[serve]", "pillow"]
# ///
r"""A policy of `roboalign serve` as a model server of vla-eval, for its benchmarks.

    python model_server.py --host 127.0.0.1 --port 8001 --args.policy ws://127.0.0.1:8000 \
        --args.cameras '{"front": "agentview"}'

It needs vla-eval, and of RoboAlign the client alone. docs/how-to/use-with-vla-eval.md shows a whole
evaluation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.specs import IMAGE_RGB, LANGUAGE, RAW, DimSpec
from vla_eval.types import Action, Observation

from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import RemotePolicy

GRIPPERS = {
    "closed_positive": DimSpec("gripper", 1, "binary_close_positive", (-1, 1)),
    "open_positive": DimSpec("gripper", 1, "binary_close_negative", (-1, 1)),
    "closed_one": DimSpec("gripper", 1, "binary_close_01", (0, 1)),
    "open_one": DimSpec("gripper", 1, "continuous_01", (0, 1)),
}
"""RoboAlign's gripper codes as vla-eval names them."""
ROTATIONS = {
    "euler_xyz": ("euler_xyz", 3),
    "axis_angle": ("axis_angle", 3),
    "quaternion_xyzw": ("quaternion_xyzw", 4),
}
"""The rotation forms that both know; others are declared under RoboAlign's name."""
SIZES = {"none": 0, "quaternion_wxyz": 4, "rot6d": 6}
"""Numbers of the other forms; 3 of those that are not listed."""


@dataclass(frozen=True)
class Seen:
    """What `RemotePolicy` is asked about."""

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str


class RoboAlignServer(PredictModelServer):
    """Ask a policy server for the chunk of every observation that needs one."""

    def __init__(
        self,
        *,
        policy: str = "ws://127.0.0.1:8000",
        cameras: dict[str, str],
        state: str = "",
        execute: int = 0,
        resize: bool = False,
        observation_params: dict[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        """Connect to the policy at `policy`.

        `cameras` maps each of its cameras to the benchmark's image. `state` is the benchmark's
        entry with its proprioception, needed if the policy reads it. `execute` is how many actions
        of a chunk are executed before the next is asked for, 0 for all. `resize` allows images of
        another size with the same proportions. `observation_params` are what the benchmark is
        asked to send, such as {"send_wrist_image": true}.

        Raises RoboAlignError if the server cannot be reached, or if cameras or state are not those
        that it wants.
        """
        self.remote = RemotePolicy(policy, None)
        self.state, self.resize, self.params = state, resize, observation_params or {}
        wanted = self.remote.metadata["observation"].values()
        self.sizes = {one["camera"]: one["shape"][:2] for one in wanted if "camera" in one}
        if set(cameras) != set(self.sizes):
            raise RoboAlignError(
                f"cameras are given for {sorted(cameras)}; the policy has {sorted(self.sizes)}",
                where="--args.cameras",
                fix="name the benchmark's image for each of the policy's cameras",
            )
        if self._state_entry()["required"] and not state:
            raise RoboAlignError(
                f"the policy reads the state {self._state_entry()['names']}",
                where="--args.state",
                fix="name the benchmark's entry that holds these numbers in this order",
            )
        self.cameras = cameras
        horizon = self.remote.horizon
        if not 0 <= execute <= horizon:
            raise RoboAlignError(
                f"{execute} actions, and a chunk has {horizon}", where="--args.execute"
            )
        super().__init__(chunk_size=execute or horizon, **rest)

    def _state_entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.remote.metadata["observation"]["observation/state"]
        return entry

    def predict_batch(
        self, obs_batch: list[Observation], ctx_batch: list[SessionContext]
    ) -> list[Action]:
        """Return a chunk [H, A] for each observation, in raw units."""
        seen = [self._seen(one) for one in obs_batch]
        keys = [("vla-eval", one.episode_id, one.step) for one in ctx_batch]
        return [{"actions": chunk} for chunk in self.remote.act_batch(seen, keys)]

    def _seen(self, observation: Observation) -> Seen:
        images = observation.get("images", {})
        missing = [name for name in self.cameras.values() if name not in images]
        if missing:
            raise RoboAlignError(
                f"the benchmark sends the images {sorted(images)}, not {missing}",
                where="--args.cameras",
                fix="ask for it with --args.observation_params",
            )
        if self.state and self.state not in observation:
            raise RoboAlignError(
                f"the benchmark sends {sorted(observation)}, no `{self.state}`",
                where="--args.state",
                fix="ask for it with --args.observation_params",
            )
        state = np.asarray(observation[self.state], np.float32) if self.state else np.zeros(0)
        shown = {camera: self._image(camera, images[name]) for camera, name in self.cameras.items()}
        return Seen(shown, state, str(observation["task_description"]))

    def _image(self, camera: str, image: np.ndarray) -> np.ndarray:
        """Return the image in the policy's size. The server refuses any other."""
        height, width = self.sizes[camera]
        if not self.resize or height is None or image.shape[:2] == (height, width):
            return image
        if image.shape[0] * width != image.shape[1] * height:
            raise RoboAlignError(
                f"the image is {image.shape[1]} x {image.shape[0]}, the policy's {width} x {height}: "
                "other proportions",
                where=f"camera {camera}",
                fix="render the benchmark's camera in the policy's proportions",
            )
        small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
        return np.asarray(small)

    def get_action_spec(self) -> dict[str, DimSpec]:
        """Declare the action space that the policy was trained in; one raw entry if it is not known,
        or if joints are controlled."""
        space = self.remote.metadata["action"]["space"]
        size = int(self.remote.metadata["action"]["shape"][-1])
        if not space or space["control"] != "end-effector":
            kind = "raw" if not space else f"{space['mode']}_joint_positions"
            return {"action": DimSpec("action", size, kind)}
        spec = {"position": DimSpec("position", 3, _position_form(space))}
        if space["rotation"] != "none":
            form = space["rotation"]
            name, count = ROTATIONS.get(form, (form, SIZES.get(form, 3)))
            spec["rotation"] = DimSpec("rotation", count, name)
        if space["gripper"] != "none":
            spec["gripper"] = GRIPPERS[space["gripper"]]
        return spec

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """Declare the benchmark's images, the instruction, and the state if it is read."""
        spec = dict.fromkeys(self.cameras.values(), IMAGE_RGB) | {"language": LANGUAGE}
        return spec | ({"state": RAW} if self.state else {})

    def get_observation_params(self) -> dict[str, Any]:
        """Return what the benchmark is asked to send."""
        return self.params


def _position_form(space: Mapping[str, Any]) -> str:
    """Return the position's form. vla-eval's `delta_xyz` is in a controller's units and in the base
    frame; it must warn of meters and of the tool's axes, which no number shows."""
    form = f"{space['mode']}_xyz"
    if space["mode"] != "absolute":
        form += "_tool" if space["frame"] == "tool" else ""
        form += "_meters" if space["position_scale"] == 1 else ""
    return form


if __name__ == "__main__":
    from vla_eval.model_servers.serve import run_server

    run_server(RoboAlignServer)
