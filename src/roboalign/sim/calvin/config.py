"""Settings of CALVIN, without the simulator."""

from typing import Literal

from pydantic import Field

from roboalign.core.config import Config

CalvinCamera = Literal["static", "gripper"]


class CalvinConfig(Config):
    """Where CALVIN is, and what moves its success rates."""

    checkout: str = ""
    """Folder of a git clone of mees/calvin with calvin_env inside it. Tasks, sentences, meshes and
    the oracle are read from there."""
    cameras: tuple[CalvinCamera, ...] = ("static", "gripper")
    """`static` looks at the table and is drawn at 200 pixels; `gripper` moves with the hand, 84 pixels."""
    image_size: int = Field(200, ge=8, le=4096)
    """Width and height that a policy sees, pixels; drawn images are resized, bilinear."""
    render: Literal["egl", "tiny"] = "egl"
    """`egl` is OpenGL, with which the public data set was drawn; `tiny` is Bullet's own renderer.
    Physics is the same, images are not."""
    state: Literal["pose", "all"] = "pose"
    """`pose`: position, Euler angles and opening of the hand, 7 numbers. `all`: also the arm's 7
    joints and the last gripper command, 15 numbers."""
    subtask_steps: int = Field(360, ge=1, le=100_000)
    """Steps after which an unsolved subtask ends the chain. CALVIN's own is 360."""
    fresh: bool = True
    """Build the simulation again for each chain. False reuses it, as CALVIN's own evaluation does;
    results then depend on the order of the chains."""
