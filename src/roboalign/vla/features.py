"""Compute hidden states of the frozen MLLM for every frame of a data set once, and keep them on
disk, memory-mapped.

`View` is the one path from camera images and an instruction to the head's input, in training and in
serving.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor

from roboalign.conversations.prompts import Mode
from roboalign.conversations.styles.base import DEFAULT_STYLE, StyleName
from roboalign.conversations.styles.registry import style_of
from roboalign.core.config import Config
from roboalign.core.distributed import each_by_one, leads, world_size
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_tree
from roboalign.core.progress import Progress, format_seconds
from roboalign.episodes.episode import Episode
from roboalign.mllm.encode import Encoded, Prompt, encode_prompt
from roboalign.mllm.hidden import hidden_states
from roboalign.mllm.load import Mllm
from roboalign.mllm.rounding import Dtype, pack, token_bytes, unpack
from roboalign.vla.augment import AugmentConfig, augment
from roboalign.vla.policy_input import shown_images
from roboalign.vla.reasoning import Thought, longest_thought, write_thoughts
from roboalign.vla.store import SHARD_FORMAT, FeatureStore, write_feature_shard

BACKBONE_FILES = re.compile(
    r".*\.safetensors|config\.json|tokenizer\.json|.*processor_config\.json|chat_template\..*"
)
GRAY = 128
"""Value of every pixel in the image of a blind policy."""
HeadReading = Literal["direct", "think", "reasoned"]
"""What the head reads: the direct question; the question that asks for a reasoning first; or that
question and the reasoning that the MLLM then writes."""
LARGE = 2**30
"""Bytes of hidden states from which `describe_features` gives details."""


class FeatureConfig(Config):
    """How hidden states are computed and stored."""

    every: int = Field(default=1, ge=1)
    """Use every n-th frame of an episode."""
    batch_size: int = Field(default=64, ge=1)
    """Frames per forward pass."""
    most_gb: float = Field(default=200.0, ge=0)
    """Gigabytes of hidden states that are stored, at most. Larger ones are not stored: each step
    computes those of its batch, which costs a forward pass of the MLLM a step."""
    shard_frames: int = Field(default=2048, ge=1)
    """Frames per file, rounded up to whole episodes; a killed run loses at most one file's work."""
    variants: int = Field(default=0, ge=0, le=10_000)
    """Augmented copies stored for each training frame. They replace the plain frame and are each as
    large; a step draws one of them. 0: the plain frames. Held-out frames and what a policy sees are
    never augmented."""
    augment: AugmentConfig = AugmentConfig()
    """How such a copy is drawn."""

    def copies(self, view: "View") -> int:
        """Return the augmented copies of each training frame; 0 for a blind view, whose copies
        would be identical."""
        return 0 if view.blind else self.variants

    def stores(self, size: float) -> bool:
        """Return whether hidden states of `size` bytes are stored."""
        return size <= self.most_gb * 1e9

    def frames(self, episode: Episode) -> range:
        """Return the steps of an episode that are used."""
        return range(0, len(episode), self.every)


class View(Config):
    """Input of the head: hidden states of layer `layer`, for the action question about the
    cameras."""

    layer: int = Field(ge=1)
    """Text layer of the MLLM, 1 the lowest (paper: 18 of 28)."""
    cameras: tuple[str, ...] = Field(min_length=1)
    """Cameras in the order in which the MLLM sees them."""
    cameras_as: Literal["images", "side_by_side"] = "images"
    """Show each camera as a separate image, or all side by side, left to right, in one image."""
    blind: bool = False
    """Show a gray image of the same size instead. The number of tokens, and so the head's compute,
    stays the same, and no position of the sequence, text included, can depend on the scene."""
    final_norm: bool = False
    """Apply the MLLM's last norm to the hidden states, as GR00T-N1.5 does. The states of the
    topmost layer always have it."""
    dtype: Dtype = "float16"
    """Type to which hidden states are rounded, on disk and in serving (`rounding.pack`)."""
    prompts: StyleName = DEFAULT_STYLE
    """Style of the question: the one that the MLLM was trained in."""
    reading: HeadReading = "direct"
    """What is read: the direct question, the one in think mode, or that one with the reasoning that
    the MLLM writes to it, greedily, before each decision."""
    max_reasoning_tokens: int = Field(128, ge=1, le=1_000_000)
    """Tokens after which such a reasoning is closed."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that change the hidden states. The two about the reading count only
        where they do something, so that states stored before there was a choice stay valid."""
        fields = self.model_dump()
        if self.reading != "reasoned":
            del fields["max_reasoning_tokens"]
        if self.reading == "direct":
            del fields["reading"]
        return fields

    def prompt(self, images: Mapping[str, UInt8[np.ndarray, "_ _ 3"]], instruction: str) -> Prompt:
        """Return the MLLM's prompt for images by camera.

        Raises RoboAlignError if a camera is missing, or if images to show side by side differ in
        height.
        """
        shown = shown_images(images, self.cameras, side_by_side=self.cameras_as == "side_by_side")
        return Prompt(
            self.question(instruction),
            tuple(np.full_like(image, GRAY) if self.blind else image for image in shown),
        )

    def question(self, instruction: str) -> str:
        """Return the question that the MLLM is asked."""
        mode: Mode = "direct" if self.reading == "direct" else "think"
        return style_of(self.prompts).action_question(instruction, mode)

    def think(self, mllm: Mllm, prompts: Sequence[Prompt]) -> list[Thought]:
        """Return each prompt with the reasoning that the MLLM writes to it."""
        encoded = [encode_prompt(mllm, one.question, one.images) for one in prompts]
        return write_thoughts(mllm, encoded, self.max_reasoning_tokens)

    def longest(self, mllm: Mllm, prompt: Prompt) -> Encoded:
        """Return a prompt with as many tokens as the head reads of it at most."""
        encoded = encode_prompt(mllm, prompt.question, prompt.images)
        if self.reading != "reasoned":
            return encoded
        return longest_thought(mllm, encoded, self.max_reasoning_tokens)

    def encode(
        self, mllm: Mllm, prompts: Sequence[Prompt | Encoded], *, multiple: int = 1
    ) -> tuple[Float[Tensor, "{len(prompts)} tokens width"], Bool[Tensor, "{len(prompts)} tokens"]]:
        """Return hidden states rounded to `dtype`, and the mask of tokens that are not padding.

        With the reading `reasoned`, the MLLM first writes its reasoning to each `Prompt`; an
        `Encoded` is read as it is. The number of tokens is rounded up to a multiple of `multiple`.
        Raises RoboAlignError if a value does not fit into `dtype`.
        """
        states, mask = hidden_states(
            mllm,
            self.read(mllm, prompts),
            self.layer,
            batch_size=len(prompts),
            multiple=multiple,
            final_norm=self.final_norm,
        )
        rounded = unpack(*pack(states, self.dtype))
        if not torch.isfinite(rounded[mask]).all():
            raise RoboAlignError(
                f"hidden states of layer {self.layer} are not finite as {self.dtype}",
                where=str(mllm.folder),
                fix="use bfloat16, or check the weights for NaN",
            )
        return rounded, mask

    def read(self, mllm: Mllm, prompts: Sequence[Prompt | Encoded]) -> list[Encoded]:
        """Return the tokens that are read of each prompt, a written reasoning included."""
        asked = [one for one in prompts if isinstance(one, Prompt)]
        if self.reading == "reasoned":
            written = iter([one.encoded for one in self.think(mllm, asked)])
        else:
            written = iter([encode_prompt(mllm, one.question, one.images) for one in asked])
        return [next(written) if isinstance(one, Prompt) else one for one in prompts]


def backbone_hash(folder: str | Path) -> str:
    """Return the sha256 over weights, configuration, tokenizer and processor of a Hugging Face
    folder, but not its logs."""
    root = Path(folder)
    return hash_tree(
        root, lambda path: path.parent == root and bool(BACKBONE_FILES.fullmatch(path.name))
    )


def feature_bytes(
    mllm: Mllm,
    episodes: Sequence[Episode],
    view: View,
    config: FeatureConfig,
    *,
    augmented: bool = False,
) -> int:
    """Return the bytes that the hidden states of `episodes` will take on disk, at most."""
    tokens = 0
    for episode in episodes:
        prompt = frame_prompt(episode, 0, view)
        tokens += len(config.frames(episode)) * len(view.longest(mllm, prompt).input_ids)
    width = mllm.model.config.get_text_config().hidden_size
    return tokens * token_bytes(width, view.dtype) * ((augmented and config.copies(view)) or 1)


def describe_features(
    mllm: Mllm,
    training: Sequence[Episode],
    heldout: Sequence[Episode],
    view: View,
    config: FeatureConfig,
    folder: str | Path,
    *,
    size: int,
    drawn: int,
) -> str:
    """Describe in one line what storing the hidden states costs; for large ones also what it saves,
    and for too large ones what computing them in each step costs.

    `size` is their bytes, `drawn` the training frames that all steps use together. Times a forward
    pass.
    """
    copies, seconds = (
        config.copies(view),
        _seconds_a_frame(mllm, training[0], view, config) / world_size(),
    )
    kept = sum(len(config.frames(episode)) for episode in training) * (copies or 1)
    frames = kept + sum(len(config.frames(episode)) for episode in heldout)
    subject = f"hidden states of {len(training) + len(heldout)} episodes"
    if not config.stores(size):
        return (
            f"{subject}: {size / 1e9:,.3g} GB, more than features.most_gb ({config.most_gb:g}), so none are "
            f"stored; each step computes those of its batch, all {drawn:,} frames in about "
            f"{format_seconds(drawn * seconds)}"
        )
    if size < LARGE:
        return f"{subject}: {size / 2**20:.1f} MiB, about {format_seconds(frames * seconds)}"
    width = mllm.model.config.get_text_config().hidden_size
    mebibytes = size / token_bytes(width, view.dtype) / 2**20
    sizes = {dtype: mebibytes * token_bytes(width, dtype) for dtype in get_args(Dtype)}
    others = ", ".join(
        f"{size:.1f} as {dtype}" for dtype, size in sizes.items() if dtype != view.dtype
    )
    augmented = f" ({copies} augmented copies of each training frame)" if copies else ""
    return (
        f"{subject}: {frames:,} frames{augmented}, "
        f"{sizes[view.dtype]:.1f} MiB as {view.dtype} ({others}) in {folder}; computing them once takes about "
        f"{format_seconds(frames * seconds)}, for each of the {drawn:,} frames drawn it would take "
        f"{format_seconds(drawn * seconds)}"
    )


def compute_features(
    mllm: Mllm,
    episodes: Sequence[Episode],
    view: View,
    config: FeatureConfig,
    folder: str | Path,
    *,
    augmented: bool = False,
) -> FeatureStore:
    """Return the hidden states of every `config.every`-th frame of `episodes`, stored in `folder`.

    If they are `augmented` and the settings have `variants`, all frames of the first copy come
    first, then those of the second. With several processes, each computes some of the files, and
    all read all of them.

    The name of a file is a hash of the backbone's weights, the settings and its frames, so a file
    of an earlier run is reused only if it would be the same. Raises RoboAlignError if the MLLM was
    not loaded from a folder.
    """
    if mllm.folder is None:
        raise RoboAlignError(
            "the MLLM has no folder to identify it by", fix="save it with save_mllm and load it"
        )
    backbone = backbone_hash(mllm.folder)
    copies = config.copies(view) if augmented else 0
    numbers = range(1, copies + 1) if copies else (0,)
    parts = [(group, copy) for copy in numbers for group in _groups(episodes, config)]

    def find(part: tuple[list[Episode], int]) -> tuple[str, bool]:
        path = (
            Path(folder)
            / f"features-{_shard_key(backbone, part[0], view, config, part[1])}.safetensors"
        )
        return str(path), path.exists()

    found = each_by_one(find, parts)
    missing = [(Path(path), *part) for part, (path, there) in zip(parts, found) if not there]
    total = (copies or 1) * sum(len(config.frames(episode)) for episode in episodes)
    left = sum(len(config.frames(episode)) for _, group, _ in missing for episode in group)
    with Progress("features", total, start=total - left, shown=leads()) as progress:

        def compute(part: tuple[Path, list[Episode], int]) -> None:
            _compute_shard(*part, mllm, view, config)
            # The other processes are assumed to be equally far.
            progress.advance(
                min(
                    world_size() * sum(len(config.frames(e)) for e in part[1]),
                    total - progress.done,
                )
            )

        each_by_one(compute, missing)
    return FeatureStore([Path(path) for path, _ in found])


def _groups(episodes: Sequence[Episode], config: FeatureConfig) -> list[list[Episode]]:
    groups: list[list[Episode]] = []
    frames = config.shard_frames
    for episode in episodes:
        if frames >= config.shard_frames:
            groups.append([])
            frames = 0
        groups[-1].append(episode)
        frames += len(config.frames(episode))
    return groups


def _shard_key(
    backbone: str, episodes: Sequence[Episode], view: View, config: FeatureConfig, copy: int
) -> str:
    settings = [SHARD_FORMAT, backbone, view.identity(), config.every]
    if copy:
        settings += [config.augment.model_dump(), copy]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for episode in episodes:
        digest.update(json.dumps([episode.episode_id, episode.instruction, len(episode)]).encode())
        for camera in view.cameras:
            of_video = getattr(episode.images.get(camera), "digest", None)
            if of_video is not None:  # without decoding each frame once more
                digest.update(of_video(config.frames(episode)))
                continue
            for t in config.frames(episode):
                digest.update(hashlib.sha256(episode.png(camera, t)).digest())
    return digest.hexdigest()[:32]


def frame_prompt(
    episode: Episode, t: int, view: View, config: AugmentConfig | None = None, copy: int = 0
) -> Prompt:
    """Return the MLLM's prompt for step `t`: of the plain frame, or of its augmented copy
    `copy`."""
    images = {camera: episode.frame(camera, t) for camera in view.cameras}
    if config is not None and copy:
        images = {
            camera: augment(image, config, episode.episode_id, camera, t, copy)
            for camera, image in images.items()
        }
    return view.prompt(images, episode.instruction)


def _compute_shard(
    path: Path,
    episodes: Sequence[Episode],
    copy: int,
    mllm: Mllm,
    view: View,
    config: FeatureConfig,
) -> None:
    frames = [(episode, t) for episode in episodes for t in config.frames(episode)]
    tokens, lengths = [], []
    for start in range(0, len(frames), config.batch_size):
        batch = frames[start : start + config.batch_size]
        states, mask = view.encode(
            mllm, [frame_prompt(episode, t, view, config.augment, copy) for episode, t in batch]
        )
        # the values are already rounded, so packing them again is exact
        numbers, exponents = pack(states[mask], view.dtype)
        tokens.append((numbers.cpu(), None if exponents is None else exponents.cpu()))
        lengths.append(mask.sum(dim=1).cpu())
    write_feature_shard(path, tokens, lengths)


def _seconds_a_frame(mllm: Mllm, episode: Episode, view: View, config: FeatureConfig) -> float:
    """Return the seconds per frame of a forward pass, including its images; the second pass is
    timed."""
    steps = config.frames(episode)[: config.batch_size]
    for _ in range(2):
        began = time.perf_counter()
        states, _ = view.encode(mllm, [frame_prompt(episode, t, view) for t in steps])
        states.sum().item()  # waits for a GPU
        seconds = time.perf_counter() - began
    return seconds / len(steps)
