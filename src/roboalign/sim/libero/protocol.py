"""Define LIBERO's protocol: every setting that affects a success rate and is stored with it, and
the values of known harnesses."""

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.sim.cameras import RenderMode
from roboalign.sim.libero.suites import CAMERA_NAMES, SUITES, CameraName, Instruction

PresetName = Literal["openpi", "lerobot", "simplevla-rl", "rlinf", "gr00t"]


_SETTINGS = (
    "settle_steps",
    "max_steps",
    "render_size",
    "image_size",
    "cameras",
    "rotate",
    "replan_every",
    "seed",
    "fixtures",
    "instruction",
    "render",
)


def _but(*checked: str) -> tuple[str, ...]:
    return tuple(name for name in _SETTINGS if name not in checked)


_DIFFERENCES: dict[str, dict[str, Any]] = {
    "lerobot": {
        "max_steps": {"libero_spatial": 280},
        "render_size": 360,
        "assumed": _but("max_steps", "render_size"),
    },
    "simplevla-rl": {"max_steps": dict.fromkeys(SUITES, 512), "assumed": _but("max_steps")},
    "rlinf": {"settle_steps": 15, "assumed": _but("settle_steps")},
    # Isaac-GR00T (N1.5): examples/Libero/eval/run_libero_eval.py; the file that rotates the images
    # was not inspected
    "gr00t": {
        "max_steps": {"libero_goal": 600, "libero_10": 1000},
        "image_size": 256,
        "replan_every": 1,
        "assumed": ("rotate", "seed", "fixtures", "render"),
    },
}
"""The settings of each preset that differ from openpi's."""


class SuiteSteps(Config):
    """Policy steps after which an unsolved episode is a failure, by suite."""

    libero_spatial: int = Field(220, ge=1)
    """Steps in libero_spatial."""
    libero_object: int = Field(280, ge=1)
    """Steps in libero_object."""
    libero_goal: int = Field(300, ge=1)
    """Steps in libero_goal."""
    libero_10: int = Field(520, ge=1)
    """Steps in libero_10."""
    libero_90: int = Field(400, ge=1)
    """Steps in libero_90."""


class LiberoConfig(Config):
    """LIBERO's protocol, which also sets a rollout's step limit and replanning. The defaults are
    openpi's."""

    preset: PresetName = "openpi"
    """The harness whose values are used for settings that are not given."""
    assumed: tuple[str, ...] = ()
    """Settings of the preset that were not verified in its harness and are openpi's."""
    settle_steps: int = Field(10, ge=0, le=100_000)
    """Steps of the action [0, 0, 0, 0, 0, 0, -1] after a reset, not counted as the policy's."""
    max_steps: SuiteSteps = SuiteSteps()
    """Step limit of each suite."""
    render_size: int = Field(256, ge=16, le=4096)
    """Width and height at which both cameras are rendered, pixels."""
    image_size: int = Field(224, ge=16, le=4096)
    """Width and height that the policy sees, resized bilinearly (with padding if an image is not
    square)."""
    cameras: tuple[CameraName, ...] = Field(CAMERA_NAMES, min_length=1)
    """Cameras that are rendered and stored; peers' policies see both. Rendering takes most of an
    observation's time."""
    rotate: bool = True
    """Rotate the images of both cameras by 180 degrees, because robosuite gives them upside
    down."""
    replan_every: int = Field(5, ge=1)
    """Actions of a chunk that are executed before the policy sees the next observation."""
    seed: Seed = 7
    """Seed of the random numbers before a stored initial state is set: it places fixtures, which
    the state does not contain."""
    fixtures: Literal["trial", "task"] = "trial"
    """`trial`: each stored initial state draws its own fixtures from (seed, index of the state), as
    each openpi trial does. `task`: all states of a task share the one draw of `seed`, so the
    success rate depends on it."""
    instruction: Instruction = "name"
    """`name`: the task's name in words, which openpi sends and the public data sets contain;
    `bddl`: the task file's sentence, which differs in some suites."""
    render: RenderMode = "default"
    """`default` draws the model as it is; `fast` leaves out shadows, reflections and
    multisampling."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_preset(cls, values: Any) -> Any:
        """Merge the settings: given ones override the preset's, which override openpi's."""
        if not isinstance(values, dict) or values.get("preset") not in _DIFFERENCES:
            return values
        theirs = _DIFFERENCES[values["preset"]]
        steps = values.get("max_steps", {})
        if isinstance(steps, dict):
            values = {**values, "max_steps": {**theirs.get("max_steps", {}), **steps}}
        return {**theirs, **values}


LIBERO_PRESETS: dict[str, LiberoConfig] = {
    name: LiberoConfig(preset=name) for name in get_args(PresetName)
}


def preset(name: str) -> LiberoConfig:
    """Return the protocol of a known harness. Raises RoboAlignError for an unknown name."""
    if name not in LIBERO_PRESETS:
        raise RoboAlignError(
            f"unknown LIBERO preset {name!r}",
            where="preset",
            fix=f"use one of {', '.join(LIBERO_PRESETS)}",
        )
    return LIBERO_PRESETS[name]


def departures(config: LiberoConfig) -> dict[str, Any]:
    """Return the settings that differ from those of `config.preset`, with their values."""
    theirs = LIBERO_PRESETS[config.preset].model_dump()
    return {name: value for name, value in config.model_dump().items() if value != theirs[name]}
