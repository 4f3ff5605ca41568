"""A tiny MLLM with action tokens and the token policies of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from synthetic_episodes import make_episodes

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.hold import HoldRule
from roboalign.actions.normalize import ActionStats
from roboalign.actions.spaces import ActionSpace
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.conversations.styles.registry import STYLES
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny
from roboalign.vla.token_policy import TokenPolicy, TokenView
from roboalign.vla.token_writer import TokenPolicyConfig

HORIZON, DIM = 4, 4
SPACE = ActionSpace(control="end-effector", mode="delta", gripper="closed_positive")
EPISODES = make_episodes()
OPEN, CLOSED = -1.0, 1.0


def build_parts(folder: Path) -> dict[str, Any]:
    """A tiny model in a folder, with action tokens, its FAST tokenizer, and 12 raw chunks."""
    torch.manual_seed(0)
    raw = np.random.default_rng(0).uniform(-1, 1, (60, HORIZON, DIM)).astype(np.float32)
    raw[..., 3] = np.where(raw[..., 3] > 0, CLOSED, OPEN)
    stats = ActionStats.fit(raw.reshape(-1, DIM))
    fast = FastTokenizer.fit(stats.normalize(raw), scale=8.0, vocab_size=128)
    vision = {"image_size": 32, "vision_width": 32, "vision_depth": 2, "vision_heads": 2}
    config = TinyConfig(**vision, width=48, depth=2, heads=2, kv_heads=2)
    style = STYLES["labelled"]
    texts = [style.action_question(one.instruction, "think") for one in EPISODES]
    texts += [style.reply("down", "think", "words", "The gripper should move down.")]
    mllm = build_tiny(config, texts * 20)
    mllm.vocabulary = extend_tokenizer(mllm.tokenizer, fast.vocab_size)
    extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
    mllm.prompts = "labelled"
    save_mllm(mllm, folder)
    return {"folder": folder, "fast": fast, "stats": stats, "raw": raw}


def make(parts: dict[str, Any], mode: str = "direct", **config: Any) -> TokenPolicy:
    return TokenPolicy(
        load_mllm(parts["folder"]),
        parts["fast"],
        parts["stats"],
        HoldRule(space=SPACE),
        TokenView(mode=mode, cameras=("front",), prompts="labelled"),
        TokenPolicyConfig(**config),
    )


def seen(number: int = 0, t: int = 0) -> SimpleNamespace:
    one = EPISODES[number]
    images = {camera: one.frame(camera, t) for camera in one.images}
    return SimpleNamespace(images=images, state=one.state[t], instruction=one.instruction)
