"""Hidden states of the frozen MLLM for every frame of a data set: computed once, kept on disk, read memory-mapped.

`View` is the one path from camera images and an instruction to the head's input, in training and in serving.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from roboalign.config import Config
from roboalign.data.episode import Episode
from roboalign.data.prompts import action_question
from roboalign.errors import RoboAlignError
from roboalign.files import atomic_path, hash_tree
from roboalign.mllm.encode import Prompt, encode_prompt
from roboalign.mllm.hidden import hidden_states
from roboalign.mllm.load import Mllm
from roboalign.progress import Progress

FORMAT = "1"  # of a shard; a change makes every older shard unknown
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
BACKBONE_FILES = re.compile(r".*\.safetensors|config\.json|tokenizer\.json|.*processor_config\.json|chat_template\..*")
GRAY = 128
"""Every pixel of the image that a blind policy is shown."""


class FeatureConfig(Config):
    """How hidden states are computed and kept."""

    every: int = Field(default=1, ge=1)
    """Every n-th frame of an episode is used."""
    batch_size: int = Field(default=64, ge=1)
    """Frames a forward pass."""
    shard_frames: int = Field(default=2048, ge=1)
    """Frames a file, rounded up to whole episodes; a killed run loses at most one file's work."""


class View(Config):
    """What the head gets to see: hidden states of layer `layer`, of the direct action question about the cameras."""

    layer: int = Field(ge=1)
    """Text layer of the MLLM, 1 the lowest (paper: 18 of 28)."""
    cameras: tuple[str, ...] = Field(min_length=1)
    """Several cameras are laid side by side, left to right, into the one image that the MLLM is shown."""
    blind: bool = False
    """Show a gray image of the same size instead. The token count, and so the head's compute, stays the same, and no
    position of the sequence, text included, can know the scene."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Hidden states are rounded to it, on disk and in serving alike."""

    def prompt(self, images: Mapping[str, np.ndarray], instruction: str) -> Prompt:
        """The MLLM's prompt for uint8 images [H, W, 3] by camera. Raises RoboAlignError on a missing camera."""
        missing = [camera for camera in self.cameras if camera not in images]
        if missing:
            raise RoboAlignError(f"no image of camera {missing[0]!r}; there are {sorted(images)}", where="observation")
        heights = {images[camera].shape[0] for camera in self.cameras}
        if len(heights) > 1:
            raise RoboAlignError(f"cameras {self.cameras} differ in height: {sorted(heights)}", where="observation")
        image = np.concatenate([images[camera] for camera in self.cameras], axis=1)
        return Prompt(action_question(instruction, "direct"), np.full_like(image, GRAY) if self.blind else image)

    def encode(self, mllm: Mllm, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Hidden states [B, L, W] of type `dtype` and the mask bool [B, L] of what is no padding.

        Raises RoboAlignError where a value does not fit into `dtype`.
        """
        states, mask = hidden_states(mllm, prompts, self.layer, batch_size=len(prompts))
        rounded = states.to(DTYPES[self.dtype])
        if not torch.isfinite(rounded[mask]).all():
            raise RoboAlignError(
                f"hidden states of layer {self.layer} are not finite as {self.dtype}",
                where=str(mllm.folder), fix="use bfloat16, or check the weights for NaN",
            )
        return rounded, mask


def backbone_hash(folder: str | Path) -> str:
    """sha256 over weights, configuration, tokenizer and processor of a Hugging Face folder; not over its logs."""
    root = Path(folder)
    return hash_tree(root, lambda path: path.parent == root and bool(BACKBONE_FILES.fullmatch(path.name)))


def feature_bytes(mllm: Mllm, episodes: Sequence[Episode], view: View, config: FeatureConfig) -> int:
    """Bytes that the hidden states of `episodes` take on disk, before they are computed."""
    tokens = 0
    for episode in episodes:
        prompt = _prompts(episode, view, [0])[0]
        frames = len(range(0, len(episode), config.every))
        tokens += frames * len(encode_prompt(mllm, prompt.question, prompt.image).input_ids)
    return tokens * mllm.model.config.get_text_config().hidden_size * 2


class FeatureStore:
    """Hidden states of N frames, in the order of the episodes, memory-mapped from shard files."""

    def __init__(self, shards: Sequence[Path]) -> None:
        """Raises RoboAlignError where a shard is missing, truncated or not of this format."""
        read = [_read_shard(path) for path in shards]
        self.tokens = [tokens for tokens, _ in read]  # a shard: [its tokens, W], frames end to end
        self.lengths = np.concatenate([lengths for _, lengths in read])
        self.starts = np.concatenate([np.cumsum(lengths) - lengths for _, lengths in read])
        self.shard_of = np.repeat(np.arange(len(read)), [len(lengths) for _, lengths in read])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """W, the backbone's width."""
        return self.tokens[0].shape[1]

    def gather(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Frame numbers [B] -> hidden states [B, L, W] as stored and mask bool [B, L]; L is the longest one's."""
        lengths = self.lengths[frames][:, None]
        places = np.arange(lengths.max())
        rows = torch.from_numpy(self.starts[frames][:, None] + np.minimum(places, lengths - 1))
        states = torch.empty(*rows.shape, self.width, dtype=self.tokens[0].dtype)
        for shard in np.unique(self.shard_of[frames]):
            here = torch.from_numpy(np.flatnonzero(self.shard_of[frames] == shard))
            states[here] = self.tokens[shard][rows[here]]
        return states, torch.from_numpy(places < lengths)


def compute_features(
    mllm: Mllm, episodes: Sequence[Episode], view: View, config: FeatureConfig, folder: str | Path
) -> FeatureStore:
    """Hidden states of every `config.every`-th frame of `episodes`, kept in `folder`.

    A file's name is a hash of the backbone's weights, the settings and its frames: what an earlier run left is used
    if, and only if, it would come out the same. Raises RoboAlignError where the MLLM was not loaded from a folder.
    """
    if mllm.folder is None:
        raise RoboAlignError("the MLLM has no folder to identify it by", fix="save it with save_mllm and load it")
    backbone = backbone_hash(mllm.folder)
    total = sum(len(range(0, len(episode), config.every)) for episode in episodes)
    paths = []
    with Progress("features", total) as progress:
        for group in _groups(episodes, config):
            path = Path(folder) / f"features-{_shard_key(backbone, group, view, config)}.safetensors"
            if not path.exists():
                _write_shard(path, mllm, group, view, config)
            paths.append(path)
            progress.advance(sum(len(range(0, len(episode), config.every)) for episode in group))
    return FeatureStore(paths)


def _groups(episodes: Sequence[Episode], config: FeatureConfig) -> list[list[Episode]]:
    groups: list[list[Episode]] = []
    frames = config.shard_frames
    for episode in episodes:
        if frames >= config.shard_frames:
            groups.append([])
            frames = 0
        groups[-1].append(episode)
        frames += len(range(0, len(episode), config.every))
    return groups


def _shard_key(backbone: str, episodes: Sequence[Episode], view: View, config: FeatureConfig) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, backbone, view.model_dump(), config.every]).encode())
    for episode in episodes:
        digest.update(json.dumps([episode.episode_id, episode.instruction, len(episode)]).encode())
        for camera in view.cameras:
            for t in range(0, len(episode), config.every):
                digest.update(hashlib.sha256(episode.png(camera, t)).digest())
    return digest.hexdigest()[:32]


def _prompts(episode: Episode, view: View, steps: Sequence[int]) -> list[Prompt]:
    return [
        view.prompt({camera: episode.frame(camera, t) for camera in view.cameras}, episode.instruction) for t in steps
    ]


def _write_shard(path: Path, mllm: Mllm, episodes: Sequence[Episode], view: View, config: FeatureConfig) -> None:
    frames = [(episode, t) for episode in episodes for t in range(0, len(episode), config.every)]
    tokens, lengths = [], []
    for start in range(0, len(frames), config.batch_size):
        batch = frames[start : start + config.batch_size]
        states, mask = view.encode(mllm, [prompt for episode, t in batch for prompt in _prompts(episode, view, [t])])
        tokens.append(states[mask].cpu())
        lengths.append(mask.sum(dim=1).cpu())
    with atomic_path(path) as temporary:
        save_file({"tokens": torch.cat(tokens), "lengths": torch.cat(lengths)}, temporary, {"format": FORMAT})


def _read_shard(path: Path) -> tuple[Tensor, np.ndarray]:
    """Tokens [sum of lengths, W], mapped from the file, and lengths [frames]."""
    fix = "remove the file; it is computed again"
    try:
        with safe_open(path, "pt") as file:
            tokens, lengths = file.get_tensor("tokens"), file.get_tensor("lengths").numpy()
            known = (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError) as error:
        raise RoboAlignError(f"not a readable feature file ({error})", where=str(path), fix=fix) from None
    if not known or lengths.sum() != len(tokens):
        raise RoboAlignError("not a feature file of this version", where=str(path), fix=fix)
    return tokens, lengths
