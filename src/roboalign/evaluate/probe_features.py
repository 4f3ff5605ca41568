"""Compute what a probe reads from a backbone and a camera: the settings, the demonstrations, and
the frames' features."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from roboalign.conversations.styles.registry import style_of
from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.core.progress import Progress
from roboalign.episodes.episode import Episode
from roboalign.evaluate.probe import LabelledFrames
from roboalign.mllm.encode import Encoded, Prompt, collate, encode_prompt
from roboalign.mllm.hidden import text_layers
from roboalign.mllm.load import Mllm
from roboalign.vla.features import HeadReading, View

PAPER_DEMONSTRATIONS = 20
# longest side of the images of the raw-pixel baseline: larger ones add memory, not information
PIXELS = 64


class ProbeSettings(Config):
    """Settings of a probe of the backbones. The paper does not give phases, k, layer or how tokens
    are pooled."""

    task: str | None = None
    """Downstream task to probe; by default all, each with neighbors from its own task."""
    demonstrations: int | None = Field(default=None, ge=2)
    """Number of first demonstrations of each task to use; by default 20, as in the paper, or all
    if there are fewer."""
    layers: tuple[int, ...] | None = None
    """Text layers to probe, where 1 is the lowest; by default all."""
    arms: tuple[str, ...] | None = None
    """Arms of the recipe to probe; by default all whose backbone is done."""
    seeds: tuple[Seed, ...] | None = None
    """Training seeds of the recipe to probe; by default all."""
    phases: int = Field(default=10, ge=2)
    """Classes: equal stretches of the reference demonstration."""
    k: int = Field(default=5, ge=1)
    """Neighbors that vote."""
    every: int = Field(default=3, ge=1)
    """Classify one in this many frames; all frames take part in the alignment."""
    pool: Literal["mean", "last"] = "mean"
    """Feature of a frame: the mean over its tokens, or its last token, from which the answer is
    generated."""
    batch_size: int = Field(default=32, ge=1)
    """Frames per forward pass."""
    readings: tuple[HeadReading, ...] | None = None
    """Rank these readings, and every layer with and without the last norm, by what the head could
    take from them: direct, think, reasoned."""
    max_reasoning_tokens: int = Field(default=128, ge=1)
    """Tokens after which the reasoning of `reasoned` is closed."""


def choose_episodes(
    episodes: Sequence[Episode], settings: ProbeSettings
) -> dict[str, list[Episode]]:
    """Return each task's first demonstrations, in the order of the data set. Raises RoboAlignError
    if there are too few."""
    tasks: dict[str, list[Episode]] = {}
    for one in episodes:
        tasks.setdefault(one.task, []).append(one)
    if settings.task is not None:
        if settings.task not in tasks:
            raise RoboAlignError(
                f"no downstream demonstration is of {settings.task!r}",
                where="--task",
                fix=f"choose one of {', '.join(tasks)}",
            )
        tasks = {settings.task: tasks[settings.task]}
    for task, found in tasks.items():
        if settings.demonstrations is not None and len(found) < settings.demonstrations:
            raise RoboAlignError(
                f"{task} has {len(found)} demonstrations, not {settings.demonstrations}",
                where="--demonstrations",
                fix=f"ask for {len(found)} or fewer",
            )
    return {
        task: found[: settings.demonstrations or PAPER_DEMONSTRATIONS]
        for task, found in tasks.items()
    }


def pooled_states(
    mllm: Mllm,
    prompts: Sequence[Prompt | Encoded],
    layers: Sequence[int],
    pool: str,
    norms: Sequence[bool] | None = None,
) -> np.ndarray:
    """Return float32 [layers, B, W]: hidden states after each of `layers`, pooled over each
    prompt's tokens (mean or last).

    Equal to `mllm.hidden.hidden_states` for every layer, in one forward pass for all of them;
    padding is left out. `norms` says of each layer whether the model's last norm follows it.
    """
    encoded = [
        one if isinstance(one, Encoded) else encode_prompt(mllm, one.question, one.images)
        for one in prompts
    ]
    batch = collate(mllm, encoded, padding_side="right")
    del batch["labels"]
    with torch.no_grad():
        output = mllm.model.model(
            **{key: value.to(mllm.device) for key, value in batch.items()},
            use_cache=False,
            output_hidden_states=True,
        )
    mask = batch["attention_mask"].to(mllm.device)
    top, norm = len(output.hidden_states) - 1, mllm.model.get_decoder().norm
    found = []
    for layer, normed in zip(layers, norms or [False] * len(layers), strict=True):
        state = output.hidden_states[layer]
        with torch.no_grad():
            found.append(norm(state) if normed and layer != top else state)
    states = torch.stack(found).float()
    if pool == "last":
        pooled = states[:, torch.arange(len(prompts)), mask.sum(dim=1) - 1]
    else:
        pooled = (states * mask[None, :, :, None]).sum(dim=2) / mask.sum(dim=1)[None, :, None]
    if not torch.isfinite(pooled).all():
        raise RoboAlignError(
            "hidden states are not finite", where=str(mllm.folder), fix="check the weights for NaN"
        )
    return pooled.cpu().numpy()


def chosen_layers(mllm: Mllm, wanted: tuple[int, ...] | None) -> list[int]:
    present = len(text_layers(mllm))
    layers = sorted(set(wanted)) if wanted else list(range(1, present + 1))
    if layers[0] < 1 or layers[-1] > present:
        raise RoboAlignError(
            f"layers {layers}: the model has text layers 1..{present}",
            where="--layers",
            fix="choose of these",
        )
    return layers


def frame_states(
    mllm: Mllm,
    episodes: Sequence[Episode],
    frames: LabelledFrames,
    view: View,
    layers: Sequence[int],
    settings: ProbeSettings,
    progress: Progress,
) -> np.ndarray:
    """Return the features float32 [layers, N, W] of the frames of one task.

    Of `view` the cameras and how they are shown are used: all layers share one prompt, in the
    model's own style.
    """
    view = view.model_copy(update={"prompts": style_of(mllm.prompts).name})
    parts = []
    for start in range(0, len(frames.label), settings.batch_size):
        places = slice(start, start + settings.batch_size)
        shown = [
            (episodes[number], t) for number, t in zip(frames.owner[places], frames.step[places])
        ]
        prompts = [
            view.prompt({name: one.frame(name, t) for name in view.cameras}, one.instruction)
            for one, t in shown
        ]
        parts.append(pooled_states(mllm, prompts, layers, settings.pool))
        progress.advance(len(prompts), note=f"{mllm.folder}, {frames.task}")
    return np.concatenate(parts, axis=1)


def small_images(
    episodes: Sequence[Episode], frames: LabelledFrames, cameras: tuple[str, ...]
) -> np.ndarray:
    """Return the images themselves, float32 [N, P], side by side, scaled so that the longest side
    is at most PIXELS."""
    rows = []
    for number, t in zip(frames.owner, frames.step):
        image = Image.fromarray(
            np.concatenate([episodes[number].frame(name, int(t)) for name in cameras], axis=1)
        )
        image.thumbnail((PIXELS, PIXELS), Image.Resampling.BOX)
        rows.append(np.asarray(image, dtype=np.float32).ravel())
    return np.stack(rows)
