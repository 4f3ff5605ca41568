"""Untrained heads on the tiny MLLM, one for each reading."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from roboalign.actions.normalize import ActionStats
from roboalign.vla.features import View
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy

READINGS = ("direct", "think", "reasoned")
SMALL = {"width": 32, "heads": 2, "layers": 2, "vlm_inner_width": 32, "vlm_heads": 2}
BUDGET = 12


def view_of(reading: str, **fields: Any) -> View:
    return View(layer=2, cameras=("front",), reading=reading, max_reasoning_tokens=BUDGET, **fields)


def seen(episode: Any, t: int) -> SimpleNamespace:
    images = {camera: episode.frame(camera, t) for camera in episode.images}
    return SimpleNamespace(images=images, state=episode.state[t], instruction=episode.instruction)


def policy_of(mllm: Any, episodes: Any, reading: str) -> HeadPolicy:
    torch.manual_seed(0)
    shape = HeadShape(vlm_width=48, action_dim=4, state_dim=3, horizon=5)
    stats = ActionStats.fit(np.concatenate([one.actions for one in episodes]))
    return HeadPolicy(
        mllm, FlowMatchingHead(HeadConfig(**SMALL), shape).eval(), view_of(reading), stats, None
    )
