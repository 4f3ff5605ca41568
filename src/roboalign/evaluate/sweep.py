"""Rank what a head could read of one backbone (readings, layers, the last norm) without training
one: by a linear readout of actions, and by the probe of phases."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roboalign.conversations.styles.registry import style_of
from roboalign.core.progress import Progress
from roboalign.episodes.episode import Episode
from roboalign.evaluate.probe import LabelledFrames, knn
from roboalign.evaluate.probe_features import ProbeSettings, chosen_layers, pooled_states
from roboalign.evaluate.readout import readout_errors
from roboalign.mllm.encode import Encoded, Prompt
from roboalign.mllm.load import Mllm
from roboalign.vla.features import HeadReading, View


@dataclass(frozen=True)
class SweepFrames:
    """The frames of all probed tasks, end to end."""

    episodes: Mapping[str, Sequence[Episode]]
    labelled: Mapping[str, LabelledFrames]
    chunks: np.ndarray
    """float32 [N, H, A], normalized: what follows each frame."""
    owner: np.ndarray
    """int [N]: the episodes, numbered over all tasks."""

    def shown(self) -> list[tuple[Episode, int]]:
        """Return the (episode, step) of every frame."""
        return [
            (self.episodes[task][number], int(step))
            for task, one in self.labelled.items()
            for number, step in zip(one.owner, one.step)
        ]


@dataclass(frozen=True)
class ReadingChoice:
    """One thing that a head could read, and what it was worth on each frame."""

    reading: HeadReading
    layer: int
    final_norm: bool
    errors: np.ndarray
    """float64 [N]: L1 error of the linear readout, normalized units."""
    correct: np.ndarray
    """bool [N]: whether the nearest neighbors found the phase."""
    tokens: float
    """Mean number of tokens that are read."""
    seconds: float
    """Seconds a frame of reading it, in batches, up to the top layer."""

    @property
    def name(self) -> tuple[Any, ...]:
        """Return what tells choices apart."""
        return self.reading, self.layer, self.final_norm


def sweep_backbone(
    mllm: Mllm,
    frames: SweepFrames,
    shown_as: View,
    settings: ProbeSettings,
    progress: Progress,
) -> list[ReadingChoice]:
    """Return every choice of readings, layers and last norm. All of a reading's share one forward
    pass. `shown_as` says how the cameras are shown.

    The topmost layer's states always have the norm, so it is one choice there.
    """
    layers = chosen_layers(mllm, settings.layers)
    top = chosen_layers(mllm, None)[-1]
    asked = [(layer, norm) for layer in layers for norm in (False, True) if norm or layer != top]
    choices = []
    for reading in dict.fromkeys(settings.readings or ()):
        view = shown_as.model_copy(
            update={
                "prompts": style_of(mllm.prompts).name,
                "reading": reading,
                "max_reasoning_tokens": settings.max_reasoning_tokens,
            }
        )
        began = time.perf_counter()
        features, tokens = _features(mllm, frames, view, asked, settings, progress)
        seconds = (time.perf_counter() - began) / len(frames.owner)
        for (layer, norm), states in zip(asked, features):
            errors = readout_errors(states, frames.chunks, frames.owner)
            correct = _found_phase(states, frames, settings.k)
            choices.append(ReadingChoice(reading, layer, norm, errors, correct, tokens, seconds))
    return choices


def _features(
    mllm: Mllm,
    frames: SweepFrames,
    view: View,
    asked: Sequence[tuple[int, bool]],
    settings: ProbeSettings,
    progress: Progress,
) -> tuple[np.ndarray, float]:
    """Return float32 [choices, N, W] and the mean number of tokens read."""
    shown, parts, tokens = frames.shown(), [], 0
    layers, norms = [layer for layer, _ in asked], [norm for _, norm in asked]
    for start in range(0, len(shown), settings.batch_size):
        prompts: list[Prompt] = [
            view.prompt({name: one.frame(name, t) for name in view.cameras}, one.instruction)
            for one, t in shown[start : start + settings.batch_size]
        ]
        read: list[Encoded] = view.read(mllm, prompts)
        parts.append(pooled_states(mllm, read, layers, settings.pool, norms))
        tokens += sum(len(one.input_ids) for one in read)
        progress.advance(len(read), note=f"{mllm.folder}, {view.reading}")
    return np.concatenate(parts, axis=1), tokens / len(shown)


def _found_phase(states: np.ndarray, frames: SweepFrames, k: int) -> np.ndarray:
    """Return whether each frame's neighbors, of its own task, have its phase."""
    found, start = [], 0
    for one in frames.labelled.values():
        part = states[start : start + len(one.label)]
        found.append(knn(part, one.label, one.owner, k=k) == one.label)
        start += len(one.label)
    return np.concatenate(found)
