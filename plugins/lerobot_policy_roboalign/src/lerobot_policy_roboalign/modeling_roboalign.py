"""Answer lerobot's batches with a policy that `roboalign export policy` wrote."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_roboalign.configuration_roboalign import RoboalignConfig
from roboalign.vla.policy import Policy

IMAGES = "observation.images."


@dataclass
class Seen:
    """One observation as a RoboAlign policy takes it."""

    images: dict[str, np.ndarray]
    state: np.ndarray
    instruction: str


class RoboalignPolicy(PreTrainedPolicy):
    """A frozen policy: it acts, and is trained by `roboalign run`.

    Images, states and actions are raw; the policy itself normalizes them, so lerobot's processors
    do not.
    """

    config_class = RoboalignConfig
    name = "roboalign"

    def __init__(self, config: RoboalignConfig, **_: Any) -> None:
        super().__init__(config)
        if config.pretrained_path is None:
            raise ValueError("there is no policy to load: give --policy.path=FOLDER")
        config.validate_features()
        self.policy = Policy.load(config.pretrained_path, config.device or "cpu")
        cameras = {key.removeprefix(IMAGES) for key in config.image_features}
        if cameras != set(self.policy.cameras) or config.chunk_size != self.policy.horizon:
            raise ValueError(
                f"config.json is of another policy than policy.json in {config.pretrained_path}: "
                "write it again with `python -m lerobot_policy_roboalign FOLDER`"
            )
        self.queue: deque[Tensor] = deque()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_name_or_path: str | Path, *, config: RoboalignConfig | None = None, **_: Any
    ) -> "RoboalignPolicy":
        """Open the folder. Its weights are in head.safetensors and backbone/, and are checked."""
        folder = Path(pretrained_name_or_path)
        if config is None:
            config = RoboalignConfig.from_pretrained(folder)
        config.pretrained_path = folder
        return cls(config).eval()

    def reset(self) -> None:
        """Forget the rest of the last chunk."""
        self.queue.clear()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Return chunks [B, H, A] in raw units for a batch of observations."""
        chunks = self.policy.act_batch(self._observations(batch))
        return torch.from_numpy(chunks).to(self.config.device or "cpu")

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Return the next action [B, A]; a new chunk is computed after `n_action_steps`."""
        if not self.queue:
            chunks = self.predict_action_chunk(batch)
            self.queue.extend(chunks[:, : self.config.n_action_steps].unbind(1))
        return self.queue.popleft()

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any] | None]:
        """Raise NotImplementedError."""
        raise NotImplementedError("train it with `roboalign run`")

    def get_optim_params(self) -> dict[str, Any]:
        """Raise NotImplementedError."""
        raise NotImplementedError("train it with `roboalign run`")

    def _observations(self, batch: dict[str, Any]) -> list[Seen]:
        missing = [key for key in self.config.image_features if key not in batch]
        if missing:
            raise ValueError(
                f"the observation has no {missing[0]}; it has "
                f"{', '.join(sorted(key for key in batch if key.startswith(IMAGES)))}: name the "
                "camera so, or give --rename_map"
            )
        images = {
            key.removeprefix(IMAGES): self._pixels(key, batch[key])
            for key in self.config.image_features
        }
        count = len(next(iter(images.values())))
        tasks = batch.get("task")
        if isinstance(tasks, str):
            tasks = [tasks] * count
        if tasks is None or len(tasks) != count or not all(str(one).strip() for one in tasks):
            raise ValueError("the observation has no task: give --task, or a data set that has one")
        wanted = self.policy.state_dim
        if wanted is not None and tuple(batch[OBS_STATE].shape) != (count, wanted):
            raise ValueError(
                f"{OBS_STATE} has shape {tuple(batch[OBS_STATE].shape)}, expected {(count, wanted)}"
            )
        states = np.zeros((count, 0), np.float32)
        if wanted is not None:
            states = batch[OBS_STATE].float().cpu().numpy()
        return [
            Seen({camera: one[row] for camera, one in images.items()}, states[row], str(tasks[row]))
            for row in range(count)
        ]

    def _pixels(self, key: str, images: Tensor) -> np.ndarray:
        """Return uint8 [B, H, W, 3] of lerobot's float [B, 3, H, W] in 0 to 1."""
        shape = tuple(self.config.image_features[key].shape)
        if tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"{key} has shape {tuple(images.shape[1:])}, the policy was trained with {shape}: "
                "set the camera to that size"
            )
        low, high = float(images.min()), float(images.max())
        if not images.is_floating_point() or not (low >= 0 and high <= 1):
            raise ValueError(f"{key} is {images.dtype} from {low:g} to {high:g}, expected 0 to 1")
        return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
