"""Define `Episode`: one demonstration, the same type for every source."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from PIL import Image

from roboalign.actions.axes import Axes
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.pictures import rgb_of_file


@dataclass(frozen=True)
class Camera:
    """A static camera of an episode.

    `projection` is the 3x4 matrix from homogeneous world coordinates (meters) to homogeneous pixels
    (u right, v down, origin at the top left corner of the image, depth positive in front of the
    camera). None means unknown: questions about image points cannot then be asked.
    """

    name: str
    width: int
    height: int
    projection: np.ndarray | None = None

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Project world points [..., 3] to pixels [..., 2] (u, v); NaN behind the camera."""
        if self.projection is None:
            raise RoboAlignError("the camera has no projection matrix", where=f"camera {self.name}")
        homogeneous = (
            np.concatenate([points, np.ones_like(points[..., :1])], axis=-1) @ self.projection.T
        )
        depth = np.where(homogeneous[..., 2:] > 0, homogeneous[..., 2:], np.nan)
        return homogeneous[..., :2] / depth


@dataclass
class Episode:
    """One demonstration of T steps.

    Frames stay encoded (PNG or JPEG files) until `frame` decodes one.
    """

    episode_id: str
    """Unique in its data set, and stable: `metaworld/reach-v3/seed-17`."""
    task: str
    instruction: str
    fps: float
    actions: np.ndarray
    """float32 [T, A], raw units: the expert's clean label."""
    state: np.ndarray
    """float32 [T, S], proprioception."""
    images: Mapping[str, Sequence[bytes]]
    """camera -> T image files (PNG or JPEG), or a sequence that creates them on request."""
    cameras: dict[str, Camera]
    privileged: np.ndarray | None = None
    """float32 [T, P], the simulator's state; only question generators read it, never a policy."""
    privileged_names: tuple[str, ...] = ()
    """`gripper.x` .. `gripper.opening`, `object.x` .., `goal.x` .., in the world frame, in meters.
    A simulator that knows them adds `gripper.holding` (0 or 1) and `table.z`."""
    nouns: dict[str, str] = field(default_factory=dict)
    """Names of the bodies: `{"object": "drawer handle", "goal": "open position"}`. `scene` lists
    everything in view, if that is more than these."""
    success_step: int | None = None
    """Index of the first action after which the task is solved; None if unknown or never."""
    action_space: ActionSpace | None = None
    """What the numbers of `actions` mean; None if the source does not say."""
    axes: Axes = ("right", "forward", "up")
    """Directions of +x, +y and +z of the world frame for the robot; the default is Meta-World's."""

    def __len__(self) -> int:
        return len(self.actions)

    def png(self, camera: str, t: int) -> bytes:
        """Return the image file of one frame, as stored."""
        if camera not in self.images:
            raise RoboAlignError(
                f"no camera {camera!r}; it has {sorted(self.images)}",
                where=f"episode {self.episode_id}",
                fix="name one of these cameras",
            )
        return self.images[camera][t]

    def frame(self, camera: str, t: int) -> np.ndarray:
        """Return uint8 [H, W, 3]. Raises RoboAlignError if the stored image is broken."""
        decode = getattr(self.images.get(camera), "frame", None)
        if decode is not None:  # a video gives pixels, so skip PNG
            return decode(t)
        stored = self.png(camera, t)
        try:
            return rgb_of_file(stored)
        except RoboAlignError as error:
            raise RoboAlignError(
                f"frame {t} of camera {camera} is {error.problem}",
                where=f"episode {self.episode_id}",
                fix="collect this episode again",
            ) from None

    def chunk(self, t: int, horizon: int) -> np.ndarray:
        """Return float32 [horizon, A]: the actions from step t on.

        After the end, the last action is repeated.
        """
        return self.actions[np.minimum(np.arange(t, t + horizon), len(self) - 1)]

    def chunks(self, horizon: int) -> np.ndarray:
        """Return float32 [T, horizon, A]: the chunk of every step."""
        steps = np.arange(len(self))[:, None] + np.arange(horizon)
        return self.actions[np.minimum(steps, len(self) - 1)]

    def position(self, body: str) -> np.ndarray | None:
        """Return float32 [T, 3], world frame, in meters.

        None if the privileged state lacks this body.
        """
        names = [f"{body}.{axis}" for axis in "xyz"]
        if self.privileged is None or not all(name in self.privileged_names for name in names):
            return None
        return self.privileged[:, [self.privileged_names.index(name) for name in names]]


class LazyFrames(Sequence[bytes]):
    """The image files of T frames, created or read on request.

    A subclass implements `file(t)` for 0 <= t < T.
    """

    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, t: int) -> bytes: ...
    @overload
    def __getitem__(self, t: slice) -> list[bytes]: ...
    def __getitem__(self, t: int | slice) -> bytes | list[bytes]:
        if isinstance(t, slice):
            return [self[i] for i in range(*t.indices(self.length))]
        return self.file(self.step(t))

    def step(self, t: int) -> int:
        """Return `t` counted from the start. Raises IndexError outside of the episode."""
        if not -self.length <= t < self.length:
            raise IndexError(f"step {t} of an episode of {self.length} steps")
        return t % self.length

    def file(self, t: int) -> bytes:
        """Return the image file of frame t."""
        raise NotImplementedError


def content_id(name: str, actions: np.ndarray) -> str:
    """Return an id for an episode that its source does not name: `train/episode-000003-5f1c09ab`.

    `name` is its location in the data set. The digest of its actions (float32 [T, A], as stored,
    before any conversion) distinguishes data sets in folders of the same name. A copy of an episode
    keeps its id.
    """
    values = np.ascontiguousarray(actions, dtype="<f4")
    digest = hashlib.sha256(repr(values.shape).encode() + values.tobytes())
    return f"{name}-{digest.hexdigest()[:8]}"


def part_id(episode_id: str, first: int, end: int) -> str:
    """Return the id of steps `first` to `end` - 1 of an episode: `<id>/steps-6-11`."""
    return f"{episode_id}/steps-{first}-{end - 1}"


def recording_id(episode_id: str) -> str:
    """Return the id of the whole episode for the id of a part; other ids are unchanged."""
    name, parted, _ = episode_id.rpartition("/steps-")
    return name if parted else episode_id


def begins_recording(episode_id: str) -> bool:
    """Return whether this is the id of a whole episode or of its first part.

    Each recording has exactly one such id.
    """
    _, parted, steps = episode_id.rpartition("/steps-")
    return not parted or steps.startswith("0-")


def encode_png(frame: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as PNG.

    Compression level 1 is three times as fast at these sizes, and a few percent larger.
    """
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
