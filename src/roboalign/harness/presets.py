"""Turn one observation of a simulator into a server's request, and its reply into a chunk."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.harness.settings import LIBERO, ClientConfig, WorldShape
from roboalign.sim.base import EnvironmentCrash, Observation
from roboalign.sim.images import resize_with_padding
from roboalign.sim.rollout import Key

LIBERO_KEYS = {
    "agentview": "observation/image",
    "wrist": "observation/wrist_image",
    "state": "observation/state",
    "prompt": "prompt",
}
"""What openpi's LIBERO client sends."""
FAULT_LENGTH = 300


class Preset(Protocol):
    """One server's way to be asked."""

    def pictures(self, observation: Observation) -> dict[str, np.ndarray]:
        """Return the images that are sent, by their key: uint8 [H, W, 3]."""

    def request(self, observation: Observation, key: Key) -> dict[str, Any]:
        """Return the request for one observation."""

    def actions(self, reply: Mapping[str, Any]) -> Any:
        """Return the chunk in a reply, which should be [H, A]. Raises EnvironmentCrash if there is
        none."""


def broken_answer(problem: str) -> EnvironmentCrash:
    """Return the crash of an episode whose server gave no usable answer, as one line."""
    line = " ".join(problem.split())
    short = line if len(line) <= FAULT_LENGTH else f"{line[: FAULT_LENGTH - 3]}..."
    return EnvironmentCrash(f"the server: {short}")


def checked_chunk(actions: Any, action_dim: int, replan_every: int) -> np.ndarray:
    """Return a chunk float32 [H, A].

    Raises EnvironmentCrash if it is not, has another A, too few actions, or is not finite.
    """
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu":
        raise broken_answer(f"its actions are no array of numbers, but {_kind(actions)}")
    if actions.ndim != 2 or actions.shape[1] != action_dim:
        raise broken_answer(
            f"its chunk is {list(actions.shape)}, and an action here has {action_dim} numbers"
        )
    if len(actions) < replan_every:
        raise broken_answer(
            f"its chunk has {len(actions)} actions, and {replan_every} are executed of each"
        )
    with np.errstate(over="ignore"):
        chunk = actions.astype(np.float32)
    if not np.isfinite(chunk).all():
        count = int((~np.isfinite(chunk)).sum())
        raise broken_answer(f"{count} of the {chunk.size} numbers of its chunk are not finite")
    return chunk


def openpi_keys(given: Mapping[str, str], world: WorldShape) -> dict[str, str]:
    """Return camera, `state` and `prompt` -> key of openpi's request.

    On LIBERO these are openpi's. Elsewhere nobody has defined any: the first camera is `image`,
    others `image_CAMERA`, the state `state`.
    """
    own = {name: f"image_{name}" for name in world.cameras[1:]}
    keys = {world.cameras[0]: "image", **own, "state": "state", "prompt": "prompt"}
    if world.section == LIBERO:
        keys = {name: LIBERO_KEYS[name] for name in (*world.cameras, "state", "prompt")}
    for name in given:
        if name not in keys:
            near = difflib.get_close_matches(name, keys, 1)
            raise RoboAlignError(
                f"nothing called {name!r} is sent",
                where="--key",
                fix=f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}",
            )
    keys |= given
    if len(set(keys.values())) < len(keys):
        raise RoboAlignError("two things have one key", where="--key", fix="give each its own")
    return keys


def sent_image(image: np.ndarray, size: int | None) -> np.ndarray:
    """Return the image at the size that is sent; None: as it is."""
    return image if size is None else resize_with_padding(image, size)


@dataclass(frozen=True)
class OpenpiPreset:
    """openpi's flat request with the keys of its examples."""

    config: ClientConfig
    keys: Mapping[str, str]

    def pictures(self, observation: Observation) -> dict[str, np.ndarray]:
        return {
            self.keys[camera]: sent_image(image, self.config.image_size)
            for camera, image in observation.images.items()
        }

    def request(self, observation: Observation, key: Key) -> dict[str, Any]:
        return {
            **self.pictures(observation),
            self.keys["state"]: observation.state.astype(np.float64),
            self.keys["prompt"]: observation.instruction,
        }

    def actions(self, reply: Mapping[str, Any]) -> Any:
        return reply.get("actions")


class OwnPreset:
    """What a `roboalign serve` says in its metadata, with the key of the flow's noise."""

    def __init__(
        self, config: ClientConfig, world: WorldShape, metadata: Mapping[str, Any]
    ) -> None:
        self.config = config
        self.keys = {
            entry["camera"]: key
            for key, entry in metadata["observation"].items()
            if "camera" in entry
        }
        missing = [camera for camera in self.keys if camera not in world.cameras]
        if missing:
            raise RoboAlignError(
                f"the policy sees camera {missing[0]!r}, and the benchmark draws "
                f"{', '.join(world.cameras)}",
                where="--preset roboalign",
                fix=f"pass --set cameras=[{','.join(self.keys)}]",
            )

    def pictures(self, observation: Observation) -> dict[str, np.ndarray]:
        return {
            key: sent_image(observation.images[camera], self.config.image_size)
            for camera, key in self.keys.items()
        }

    def request(self, observation: Observation, key: Key) -> dict[str, Any]:
        return {
            **self.pictures(observation),
            "observation/state": observation.state,
            "prompt": observation.instruction,
            "noise_key": list(key),
        }

    def actions(self, reply: Mapping[str, Any]) -> Any:
        return reply.get("actions")


class StarVlaPreset:
    """starVLA's request of one example, over openpi's connection and arrays."""

    def __init__(
        self, config: ClientConfig, world: WorldShape, metadata: Mapping[str, Any]
    ) -> None:
        self.config = config
        known = metadata.get("available_unnorm_keys") or []
        chosen = config.unnorm_key or metadata.get("default_unnorm_key")
        if (chosen is None and len(known) > 1) or (known and chosen and chosen not in known):
            raise RoboAlignError(
                f"the server has statistics {', '.join(map(str, known))}"
                + (f", not {chosen}" if chosen else ", and none is chosen"),
                where="--unnorm-key",
                fix="pass the one of the data that the checkpoint was trained on for this robot",
            )

    def pictures(self, observation: Observation) -> dict[str, np.ndarray]:
        return {
            camera: sent_image(image, self.config.image_size)
            for camera, image in observation.images.items()
        }

    def request(self, observation: Observation, key: Key) -> dict[str, Any]:
        example: dict[str, Any] = {
            "image": list(self.pictures(observation).values()),
            "lang": observation.instruction,
        }
        if self.config.send_state:
            example["state"] = observation.state.astype(np.float32)[None]
        return {
            "examples": [example],
            "unnorm_key": self.config.unnorm_key,
            "do_sample": False,
            "use_ddim": True,
            "num_ddim_steps": 10,
        }

    def actions(self, reply: Mapping[str, Any]) -> Any:
        data = reply.get("data")
        if reply.get("status") != "ok" or not isinstance(data, Mapping):
            fault = reply.get("error")
            said = fault.get("message") if isinstance(fault, Mapping) else fault
            raise broken_answer(f"an error: {said or reply.get('status')}")
        if "actions" not in data and "normalized_actions" in data:
            raise broken_answer(
                "it sends normalized actions, as starVLA's servers before 2025-05 did; only its "
                "newer ones un-normalize them"
            )
        return first_of_batch(data.get("actions"))


def first_of_batch(actions: Any) -> Any:
    """Return the chunk [H, A] of a batch [1, H, A]; anything else as it is."""
    is_batch = isinstance(actions, np.ndarray) and actions.ndim == 3 and len(actions) == 1
    return actions[0] if is_batch else actions


def _kind(value: Any) -> str:
    return f"{value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
