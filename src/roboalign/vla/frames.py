"""Hold the head's training data frame by frame (hidden states, actions, states), and choose the
frames of each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from roboalign.actions.normalize import ActionStats, Method
from roboalign.actions.relative import Relative
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Episode
from roboalign.vla.features import FeatureConfig
from roboalign.vla.in_step import StatesInStep
from roboalign.vla.store import FeatureStore


@dataclass(frozen=True)
class Frames:
    """N frames. `actions` and `state` are float32 and normalized.

    The store may contain several copies of each frame: copy c of frame n is its frame c N + n.
    """

    store: FeatureStore | StatesInStep
    actions: Float[Tensor, "frames horizon action"]
    state: Float[Tensor, "frames state"] | None

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def copies(self) -> int:
        """Number of stored copies of each frame."""
        return len(self.store) // len(self)

    def batch(
        self, frames: Int[np.ndarray, " batch"], device: torch.device
    ) -> tuple[
        Float[Tensor, "batch tokens width"],
        Bool[Tensor, "batch tokens"],
        Float[Tensor, "batch state"] | None,
        Float[Tensor, "batch horizon action"],
    ]:
        """Return hidden states, their mask, states and actions for the given numbers of stored
        frames."""
        states, mask = self.store.gather(frames, device)
        index = torch.from_numpy(frames % len(self))
        state = None if self.state is None else self.state[index].to(device)
        return states.float(), mask, state, self.actions[index].to(device)


def make_frames(
    store: FeatureStore | StatesInStep,
    episodes: Sequence[Episode],
    action_stats: ActionStats,
    state_stats: ActionStats | None,
    horizon: int,
    config: FeatureConfig,
    relative: Relative | None = None,
) -> Frames:
    """Combine hidden states with normalized action chunks and states, frame by frame; the
    chunks are counted from the states if `relative` says so.

    Raises RoboAlignError if the store is empty or does not have a whole number of copies.
    """
    chunks = np.concatenate(
        [chunks_of(episode, horizon, relative)[:: config.every] for episode in episodes]
    )
    actions = torch.from_numpy(action_stats.normalize(chunks))
    state = None
    if state_stats is not None:
        state = torch.from_numpy(
            state_stats.normalize(np.concatenate([e.state[:: config.every] for e in episodes]))
        )
    if not len(store) or len(store) % len(actions):
        raise RoboAlignError(
            f"{len(store)} stored frames for {len(actions)} frames of the episodes",
            where="features",
        )
    return Frames(store, actions, state)


def chunks_of(
    episode: Episode, horizon: int, relative: Relative | None
) -> Float[np.ndarray, "steps {horizon} action"]:
    """Return the chunk of every step as the head learns it, in raw units."""
    chunks = episode.chunks(horizon)
    return chunks if relative is None else relative.relative(chunks, episode.state)


def learned_stats(
    episodes: Sequence[Episode], horizon: int, relative: Relative | None, method: Method, clip: bool
) -> ActionStats:
    """Return the statistics that normalize what the head learns."""
    if relative is None:
        rows = np.concatenate([episode.actions for episode in episodes])
    else:
        # A relative action's size depends on its step in the chunk, so all steps are counted.
        learned = [chunks_of(episode, horizon, relative) for episode in episodes]
        rows = np.concatenate([one.reshape(-1, one.shape[-1]) for one in learned])
    return ActionStats.fit(rows, method=method, clip=clip)


def batch_frames(
    count: int, batch_size: int, step: int, seed: int, copies: int = 1
) -> Int[np.ndarray, " {batch_size}"]:
    """Return the stored frames of one step: from shuffled epochs end to end, each in a random copy.

    The result depends only on the arguments.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // count
    order = np.concatenate(
        [_permutation(count, epoch, seed) for epoch in range(epochs[0], epochs[-1] + 1)]
    )
    frames = order[places - epochs[0] * count]
    if copies == 1:
        return frames
    return frames + count * np.random.default_rng([seed, step, copies]).integers(
        copies, size=batch_size
    )


@lru_cache(maxsize=4)
def _permutation(count: int, epoch: int, seed: int) -> Int[np.ndarray, " {count}"]:
    return np.random.default_rng([seed, epoch]).permutation(count)
