"""Frames whose actions can be read off their hidden states; shared by a test and the process that it kills."""

import os
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from roboalign.vla.frames import Frames
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.store import FeatureStore
from roboalign.vla.train import HeadTrainConfig

CONFIG = HeadTrainConfig(
    steps=24, batch_size=8, draws=2, eval_every=9, checkpoint_every=6, learning_rate=2e-3
)


class SlowFrames(Frames):
    """Waits at every batch, so that the process can be killed between two checkpoints."""

    def batch(self, frames, device):
        time.sleep(float(os.environ["ROBOALIGN_TEST_SLOW"]))
        return super().batch(frames, device)


def make_head() -> FlowMatchingHead:
    """A small head with dropout, always from the same weights."""
    torch.manual_seed(0)
    config = HeadConfig(
        width=32, heads=2, layers=2, vlm_inner_width=32, vlm_heads=2, future_tokens=2, dropout=0.1
    )
    return FlowMatchingHead(config, HeadShape(vlm_width=16, action_dim=2, state_dim=1, horizon=3))


def synthetic(folder: Path, count: int, seed: int) -> Frames:
    """`count` frames of 2 to 4 random tokens; each token's first two numbers tell the signs of the frame's actions."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 5, (count,), generator=generator)
    tokens = torch.randn(int(lengths.sum()), 16, generator=generator)
    signs = torch.randn(count, 2, generator=generator).sign()
    tokens[:, :2] = 2 * signs.repeat_interleave(lengths, dim=0)
    actions = 0.8 * signs[:, None].expand(-1, 3, -1).clone()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"frames-{count}-{seed}.safetensors"
    save_file({"tokens": tokens.half(), "lengths": lengths}, path, {"format": "1"})
    kind = SlowFrames if "ROBOALIGN_TEST_SLOW" in os.environ else Frames
    return kind(FeatureStore([path]), actions, None)
