"""Pretrain a tiny model's vision tower, which replaces the pretrained vision encoder of a real
MLLM.

Learning to see from the text loss takes a model of a few million parameters far longer than a
laptop allows: most answer tokens are wording, and few depend on the image. Here a small attention
layer reads the tower's tokens with one query per body. Its targets are the positions of that body
in the image and in the world. The reader is discarded afterwards.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torch.utils.data import Dataset

from roboalign.align.dataset import sample_order
from roboalign.align.schedule import Schedule, accumulation_of
from roboalign.align.train_config import TrainConfig, training_arguments
from roboalign.align.trainer import AlignTrainer
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.episodes.keypoints import Keypoints
from roboalign.mllm.load import Mllm

PIXEL_BETA, METRE_BETA = (
    0.05,
    0.2,
)  # where the Huber losses become linear: in image widths, and in units of METRES (below)
METRES = 0.1  # unit of the regressed positions, in meters
PIXEL_WEIGHT = 4.0


class VisionConfig(TrainConfig):
    """Settings of the vision tower's pretraining."""

    learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak learning rate of AdamW, cosine to 0."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the updates over which the learning rate rises from 0."""
    updates: int = Field(2500, ge=1)
    """Number of updates."""
    batch_size: int = Field(64, ge=1)
    """Frames per update, over all processes."""
    every: int = Field(2, ge=1)
    """Use every n-th frame of the demonstrations."""


class KeypointReader(nn.Module):
    """The vision tower of a Qwen-VL model with a reader of its tokens (and of its DeepStack
    features)."""

    def __init__(
        self, tower: nn.Module, width: int, n_queries: int, centre: Float[Tensor, "3"]
    ) -> None:
        super().__init__()
        self.tower, self.width = tower, width
        self.queries = nn.Embedding(n_queries, width)
        self.keys = nn.Linear(width, width)
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 5))
        self.register_buffer("centre", centre)  # mean position, meters

    def forward(
        self,
        pixel_values: Float[Tensor, "patches values"],
        image_grid_thw: Int[Tensor, "images 3"],
        queries: Int[Tensor, "images queries"],
    ) -> tuple[Float[Tensor, "images queries 2"], Float[Tensor, "images queries 3"]]:
        """Return the positions of the queried bodies in the image, in image widths, and in the
        world, in meters."""
        seen = self.tower(pixel_values, grid_thw=image_grid_thw)
        tokens = seen.pooler_output + sum(getattr(seen, "deepstack_features", None) or [])
        tokens = tokens.reshape(len(queries), -1, self.width)
        query = self.queries(queries)
        attention = (query @ self.keys(tokens).transpose(1, 2) / self.width**0.5).softmax(-1)
        read = self.out(torch.cat([attention @ tokens, query], dim=-1))
        return read[..., :2], read[..., 2:] * METRES + self.centre


class _Frames(Dataset):
    def __init__(self, points: Keypoints, camera: str) -> None:
        self.points, self.camera = points, camera

    def __len__(self) -> int:
        return len(self.points.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        episode, t = self.points.frames[index]
        points = self.points
        return {
            "image": episode.frame(self.camera, t),
            "queries": points.queries[index],
            "known": points.known[index],
            "pixels": points.pixels[index],
            "positions": points.positions[index],
        }


class VisionTrainer(AlignTrainer):
    """Huber losses of both positions, averaged over the known bodies of an update; 0 if it has
    none."""

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        self.count(samples=len(inputs["queries"]))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model: nn.Module, inputs: Any, *arguments: Any, **named: Any) -> Tensor:
        """Return this process's part of the loss; the loss of an update is the mean over
        processes."""
        pixels, positions = model(
            inputs["pixel_values"], inputs["image_grid_thw"], inputs["queries"]
        )
        known = inputs["known"].unsqueeze(-1).to(pixels.dtype)
        image = smooth_l1_loss(pixels, inputs["pixels"], reduction="none", beta=PIXEL_BETA)
        world = smooth_l1_loss(
            positions / METRES, inputs["positions"] / METRES, reduction="none", beta=METRE_BETA
        )
        everyones = self.accelerator.reduce(known.sum(), reduction="sum").clamp(min=1)
        return (
            (PIXEL_WEIGHT * (image * known).sum() + (world * known).sum())
            * self.args.world_size
            / everyones
        )


def pretrain_vision(
    mllm: Mllm,
    points: Keypoints,
    heldout: Keypoints | None,
    camera: str,
    config: VisionConfig,
    out_dir: str | Path,
) -> dict[str, Any]:
    """Train the vision tower of `mllm` in place on keypoints; its other weights do not change.

    Returns the ledger, with the median held-out errors `pixel_error` (image widths) and
    `metre_error` (meters).

    Resumes like train_sft and raises RoboAlignError in the same cases, and if the launch shards the
    model.
    """
    out_dir = Path(out_dir)
    count = points.known.sum()
    centre = torch.from_numpy(points.positions.sum(axis=(0, 1)) / count).float()
    width = mllm.model.config.get_text_config().hidden_size
    torch.manual_seed(config.seed)  # for the reader's weights
    reader = KeypointReader(mllm.model.model.visual, width, points.n_queries, centre)
    arguments = training_arguments(
        config,
        out_dir,
        updates=config.updates,
        micro_batch=config.batch_size,
        accumulation=1,
        schedule="cosine",
        warmup_ratio=config.warmup_ratio,
        save_every=config.save_every,
        on_cpu=mllm.device.type == "cpu",
    )
    arguments.per_device_train_batch_size = accumulation_of(
        config.batch_size, 1, arguments.world_size, unit="frames"
    )
    order = sample_order([0] * len(points.frames), config.batch_size, config.updates, config.seed)

    def together(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return collate_frames(mllm, rows)

    trainer = VisionTrainer(
        reader,
        arguments,
        Schedule(_Frames(points, camera), order),
        together,
        label="vision",
        out_dir=out_dir,
        fingerprint={**config.fingerprint(), "frames": len(points.frames)},
    )
    if trainer.splits:
        raise RoboAlignError(
            "a vision tower is pretrained whole on each device, and this launch splits it",
            where="base",
            fix="run `roboalign base RECIPE` without this launch first",
        )
    ledger = {"updates": config.updates, **trainer.run()}
    mllm.model.eval()
    if heldout is not None:
        ledger |= reader_errors(reader.eval(), mllm, heldout, camera)
    if trainer.is_world_process_zero():
        write_json(out_dir / "ledger.json", ledger)
    return ledger


def collate_frames(mllm: Mllm, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return pixels from the model's own image processor, and the stacked targets."""
    pixels = mllm.processor.image_processor(
        [[row["image"]] for row in rows], return_tensors="pt", input_data_format="channels_last"
    )
    stacked = {
        key: torch.from_numpy(np.stack([row[key] for row in rows]))
        for key in rows[0]
        if key != "image"
    }
    return {
        **stacked,
        "pixel_values": pixels["pixel_values"],
        "image_grid_thw": pixels["image_grid_thw"],
    }


@torch.no_grad()
def reader_errors(
    reader: KeypointReader, mllm: Mllm, points: Keypoints, camera: str, *, batch: int = 128
) -> dict[str, float]:
    """Return the median distances to the known bodies: `pixel_error` in image widths, `metre_error`
    in meters."""
    frames, pixel_errors, metre_errors = _Frames(points, camera), [], []
    for start in range(0, len(frames), batch):
        rows = collate_frames(
            mllm, [frames[i] for i in range(start, min(start + batch, len(frames)))]
        )
        pixels, positions = reader(rows["pixel_values"], rows["image_grid_thw"], rows["queries"])
        pixel_errors.append((pixels - rows["pixels"]).norm(dim=-1)[rows["known"]])
        metre_errors.append((positions - rows["positions"]).norm(dim=-1)[rows["known"]])
    errors = {"pixel_error": pixel_errors, "metre_error": metre_errors}
    return {name: float(torch.cat(values).median()) for name, values in errors.items()}
