"""Settings of Meta-World, without the simulator."""

from typing import Literal

from pydantic import Field

from roboalign.core.config import Config
from roboalign.sim.cameras import RenderMode

EPISODE_STEPS = 500
"""Meta-World's own episode limit."""

_CameraName = Literal["workspace", "corner2", "corner2_near"]


class MetaWorldConfig(Config):
    """Settings for drawing Meta-World."""

    cameras: tuple[_CameraName, ...] = ("workspace",)
    """`workspace` frames the table tightly for small images; `corner2` is Meta-World's own,
    `corner2_near` the same at (0.75, 0.075, 0.7), where lerobot and others have it."""
    image_size: int = Field(64, ge=8, le=4096)
    """Width and height of every image, pixels."""
    render: RenderMode = "fast"
    """`fast` leaves out shadows, reflections and multisampling; `default` draws the model as it
    is."""
