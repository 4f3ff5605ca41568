"""Define how a client speaks to somebody's policy server, and what each preset assumes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError

ServerKind = Literal["openpi", "roboalign", "starvla", "groot"]
Gripper = Literal[
    "as-is",
    "negate",
    "sign",
    "open-is-1",
    "closed-is-1",
    "open-is-1-sign",
    "closed-is-1-sign",
]
LIBERO = "libero"
"""The section of LIBERO's suites: other people's servers agree on its keys."""
METAWORLD = "world"
_ONLY_FOR = {
    "keys": "openpi",
    "send_state": "starvla",
    "unnorm_key": "starvla",
    "state_rotation": "groot",
    "flat": "groot",
}
"""Setting -> the one preset that reads it."""


class ClientConfig(Config):
    """Settings of the client. None: the preset's."""

    preset: ServerKind = "openpi"
    """What the server speaks: openpi's websocket protocol with openpi's keys, with those that
    `roboalign serve` names, or with starVLA's; or GR00T's protocol over ZMQ."""
    image_size: int | None = Field(None, ge=16, le=4096)
    """Width and height of the images that are sent, resized as openpi's client does. Without it 224
    for openpi and starvla, and as they are drawn for roboalign and groot."""
    gripper: Gripper | None = None
    """What the last number of an answered action means. The simulators take -1 opens, 1 closes
    (CALVIN 1 opens, -1 closes): `as-is`; `negate` where it is the other way round; `open-is-1` or
    `closed-is-1` where it is between 0 and 1; `sign` and `-sign` then make it -1 or 1. Without it `as-is`, and
    `open-is-1-sign` for starvla
    and groot on LIBERO."""
    send_state: bool = False
    """Send the state to starvla too, for checkpoints that read it. The other presets always send
    it."""
    state_rotation: Literal["rotation-vector", "euler"] = "rotation-vector"
    """What groot's roll, pitch and yaw of LIBERO's state hold. Its own client sends the rotation
    vector under these names."""
    flat: bool = False
    """Send groot's flat keys, for a server started with its wrapper for simulators."""
    unnorm_key: str | None = None
    """Which of starvla's statistics un-normalize the actions; needed if the server has several."""
    keys: Mapping[str, str] = {}
    """Camera, `state` or `prompt` -> its key in openpi's request, where it is not the preset's."""
    timeout: float = Field(60.0, gt=0, le=86_400)
    """Seconds to wait for an answer. A later answer counts as a crash of the episode."""

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> "ClientConfig":
        for name, preset in _ONLY_FOR.items():
            default = type(self).model_fields[name].default
            if preset != self.preset and getattr(self, name) != default:
                raise ValueError(
                    f"{name} says nothing to preset {self.preset}; it is a setting of {preset}"
                )
        return self


@dataclass(frozen=True)
class WorldShape:
    """What a client has to know about the benchmark."""

    section: str
    """`BenchmarkSpec.section`."""
    cameras: tuple[str, ...]
    action_dim: int
    state_dim: int


def resolved(config: ClientConfig, section: str) -> ClientConfig:
    """Return the settings with the preset's defaults filled in."""
    others = config.preset in ("starvla", "groot")
    size = 224 if config.preset in ("openpi", "starvla") else None
    gripper = "open-is-1-sign" if others and section == LIBERO else "as-is"
    return config.model_copy(
        update={
            "image_size": config.image_size or size,
            "gripper": config.gripper or gripper,
        }
    )


def world_defaults(
    config: ClientConfig, section: str, fields: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the benchmark's settings that a preset assumes, for those not given.

    `fields` are the settings that the benchmark has, `metadata` what the server says of itself.
    """
    if config.preset == "roboalign":
        wanted = sent_cameras(metadata)
        sizes = {shape[0] for shape in wanted.values() if shape[0] is not None}
        values: dict[str, Any] = {"cameras": tuple(wanted)}
        if len(sizes) == 1:
            values["image_size"] = sizes.pop()
        return {name: value for name, value in values.items() if name in fields}
    if section == METAWORLD:
        return {"cameras": ("corner2_near",), "image_size": 480, "render": "default"}
    if section == LIBERO and config.preset == "groot":
        return {"image_size": 256}
    return {}


def sent_cameras(metadata: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Return camera -> image shape of a policy of `roboalign serve`. Raises RoboAlignError if the
    metadata does not say it."""
    try:
        wanted = {
            entry["camera"]: list(entry["shape"])
            for entry in metadata["observation"].values()
            if "camera" in entry
        }
    except (KeyError, TypeError, AttributeError):
        raise RoboAlignError(
            "its metadata does not say what it wants to be sent",
            where="--preset roboalign",
            fix="this preset is for `roboalign serve`; for another server pass its own preset",
        ) from None
    return wanted


def read_gripper(actions: np.ndarray, convention: Gripper) -> np.ndarray:
    """Return actions [..., A] whose last number is -1 to open and 1 to close."""
    actions = actions.copy()
    value = actions[..., -1]
    if convention == "negate":
        value = -value
    elif convention.startswith("open-is-1"):
        value = 1 - 2 * value
    elif convention.startswith("closed-is-1"):
        value = 2 * value - 1
    if convention.endswith("sign"):
        value = np.where(value < 0, -1, 1)
    actions[..., -1] = value
    return actions
