"""Compute hidden states in the step that needs them, for data whose stored ones would be too
large."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from roboalign.episodes.episode import Episode
from roboalign.mllm.encode import Prompt
from roboalign.mllm.load import Mllm
from roboalign.vla.features import FeatureConfig, View, frame_prompt

KEPT_BYTES = 2**29
"""Pictures that are decoded ahead and kept in memory."""
MOST_STEPS_AHEAD = 64


class StatesInStep:
    """Hidden states of N frames as `FeatureStore` gives them, read from the frozen MLLM when asked.

    A shuffled batch would seek in as many videos as it has frames. So the pictures of several steps
    are decoded together, in the order of episodes and time.
    """

    def __init__(
        self,
        mllm: Mllm,
        episodes: Sequence[Episode],
        view: View,
        config: FeatureConfig,
        *,
        augmented: bool = False,
    ) -> None:
        """Prepare; nothing is decoded. `augmented`: the frames are their augmented copies."""
        self.mllm, self.view, self.config = mllm, view, config
        self.places = [(episode, t) for episode in episodes for t in config.frames(episode)]
        self.copies = config.copies(view) if augmented else 0
        self.width: int = mllm.model.config.get_text_config().hidden_size
        self.decoded: dict[int, Prompt] = {}

    def __len__(self) -> int:
        return len(self.places) * (self.copies or 1)

    def steps_ahead(self, batch: int) -> int:
        """Return how many steps of `batch` frames to decode together."""
        return max(1, min(MOST_STEPS_AHEAD, KEPT_BYTES // (batch * self.picture_bytes)))

    @cached_property
    def picture_bytes(self) -> int:
        """Return the bytes of the pictures of one frame."""
        return sum(image.nbytes for image in self.prompt(0).images)

    def decode(self, frames: Int[np.ndarray, " frames"]) -> None:
        """Decode the pictures of these frames, forward in episode order, in place of those kept."""
        inside = frames % max(1, len(self.places))
        order = np.argsort(inside, kind="stable")
        self.decoded = {int(frame): self.prompt(int(frame)) for frame in frames[order]}

    def prompt(self, frame: int) -> Prompt:
        """Return the MLLM's prompt for a frame."""
        copy, place = divmod(frame, len(self.places))
        episode, t = self.places[place]
        augment = self.config.augment if self.copies else None
        return frame_prompt(episode, t, self.view, augment, copy + 1 if self.copies else 0)

    def gather(
        self, frames: Int[np.ndarray, " batch"], device: torch.device | str = "cpu"
    ) -> tuple[Float[Tensor, "batch tokens {self.width}"], Bool[Tensor, "batch tokens"]]:
        """Return hidden states as `View.encode` does, padded to the longest frame, and their mask."""
        if not self.decoded.keys() >= set(frames.tolist()):
            self.decode(frames)
        states, mask = self.view.encode(self.mllm, [self.decoded[int(frame)] for frame in frames])
        return states.to(device), mask.to(device)
