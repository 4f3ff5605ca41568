"""The head and the policy that `scale.py` measures, each through the product's own code."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scale_measure import NEVER, Row, Setting, attempt, begin, peak_of, timed, wait
from scale_model import (
    build,
    picture,
    random_chunks,
)

from roboalign.actions.normalize import ActionStats
from roboalign.mllm.encode import collate, encode_prompt
from roboalign.mllm.hidden import truncate_layers
from roboalign.mllm.load import Mllm
from roboalign.vla.features import View
from roboalign.vla.frames import Frames
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.store import SHARD_FORMAT, FeatureStore
from roboalign.vla.train import HeadTrainConfig, fit

CAMERAS = ("front", "wrist")
CAMERA_SIDE = 224


class Enough(Exception):
    """Ends `fit` before it measures and writes: a checkpoint of the whole head would take longer than the steps."""


class Watched(Frames):
    """Training frames that note when each step begins, and where `recompute` is set, compute their hidden states."""

    def watch(
        self, limit: int, recompute: Callable[[int], tuple[torch.Tensor, torch.Tensor]] | None
    ) -> list[float]:
        """Stop when step `limit` begins; returns the list of the times."""
        self.times, self.limit, self.recompute = [], limit, recompute
        return self.times

    def batch(self, frames: np.ndarray, device: torch.device) -> Any:
        wait(device)
        self.times.append(time.perf_counter())
        if len(self.times) == self.limit:
            raise Enough
        if self.recompute is None:
            return super().batch(frames, device)
        states, mask = self.recompute(len(frames))
        return states.float(), mask, None, self.actions[torch.from_numpy(frames)].to(device)


def head_part(setting: Setting) -> Iterator[Row]:
    """Steps of `train_head`: hidden states from disk, against the frozen backbone's forward pass at every step."""
    yield from attempt("head", "head", setting, lambda: _head(setting))


def _head(setting: Setting) -> list[Row]:
    shape, device = setting.shape, setting.device
    mllm = build(shape, setting.dtype, device)
    truncate_layers(mllm, shape.layer)
    view, config = (
        _view(setting, shape.layer),
        HeadTrainConfig(
            batch_size=32,
            draws=1,
            precision="bfloat16" if setting.on_gpu else "float32",
            steps=NEVER,
            checkpoint_every=NEVER,
            eval_every=NEVER,
        ),
    )
    head = _make_head(setting, mllm)
    prompts = [
        view.prompt(_observation(setting, i).images, "open the drawer")
        for i in range(config.batch_size)
    ]
    states, mask = view.encode(mllm, prompts)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tensors = {"tokens": states[mask].cpu(), "lengths": mask.sum(1).cpu()}
        save_file(tensors, Path(folder) / "features.safetensors", {"format": SHARD_FORMAT})
        actions = torch.from_numpy(random_chunks(shape, config.batch_size))
        sides = {
            "hidden states kept on disk": None,
            "hidden states computed at every step": lambda count: view.encode(
                mllm, prompts[:count]
            ),
        }
        for what, recompute in sides.items():
            begin(device)
            frames = Watched(FeatureStore([Path(folder) / "features.safetensors"]), actions, None)
            times = frames.watch(setting.warm + setting.steps + 1, recompute)
            with contextlib.suppress(Enough):
                fit(head, frames, frames, config, Path(folder) / what, seed=0)
            rates = [
                1 / (after - before)
                for before, after in zip(times[setting.warm :], times[setting.warm + 1 :])
            ]
            parameters = sum(p.numel() for p in head.parameters())
            note = f"{parameters / 1e6:.1f}M parameters, batch 32, {states.shape[1]} tokens of width {states.shape[2]}"
            rows.append(Row("head", what, "steps/s", rates, peak_of(device), note))
    return rows


def _make_head(setting: Setting, mllm: Mllm) -> FlowMatchingHead:
    shape, width = setting.shape, mllm.model.config.get_text_config().hidden_size
    with torch.device(setting.device):
        return FlowMatchingHead(
            HeadConfig(preset=shape.head),  # type: ignore[arg-type]
            HeadShape(
                vlm_width=width, action_dim=shape.action_dim, state_dim=0, horizon=shape.horizon
            ),
        )


def _view(setting: Setting, layer: int) -> View:
    return View(layer=layer, cameras=CAMERAS, dtype="bfloat16" if setting.on_gpu else "float16")


def _observation(setting: Setting, seed: int) -> Any:
    side = CAMERA_SIDE if setting.shape.preset else setting.shape.image
    images = {
        camera: picture(side, side, 2 * seed + number) for number, camera in enumerate(CAMERAS)
    }
    return SimpleNamespace(
        images=images, state=np.zeros(0, np.float32), instruction="open the drawer"
    )


def act_part(setting: Setting) -> Iterator[Row]:
    """One observation to one chunk: `Policy.act`, from the images on."""
    for truncated in (False, True):
        name = f"layers up to {setting.shape.layer}" if truncated else "all layers"
        yield from attempt(
            "act",
            name,
            setting,
            lambda truncated=truncated, name=name: _act(setting, name, truncated),
        )


def _act(setting: Setting, name: str, truncated: bool) -> list[Row]:
    shape, device = setting.shape, setting.device
    mllm = build(shape, setting.dtype, device)
    layer = shape.layer if truncated else mllm.model.config.get_text_config().num_hidden_layers
    if truncated:
        truncate_layers(mllm, layer)  # as Policy.load does
    stats = ActionStats.fit(random_chunks(shape, 64).reshape(-1, shape.action_dim))
    policy = HeadPolicy(mllm, _make_head(setting, mllm).eval(), _view(setting, layer), stats, None)
    seen, rows = _observation(setting, 0), []
    prompt = policy.view.prompt(seen.images, seen.instruction)
    prepared = [
        1000
        * timed(
            lambda: collate(mllm, [encode_prompt(mllm, prompt.question, prompt.images)]), device
        )
        for _ in range(9)
    ]
    tokens = len(encode_prompt(mllm, prompt.question, prompt.images).input_ids)
    eager = policy.act(seen, ("a", 0))
    for compiled in (False, True) if setting.compile else (False,):
        begin(device)
        if compiled:
            policy.compile()
        off = float(np.abs(policy.act(seen, ("a", 0)) - eager).max())
        calls = [
            1000 * timed(lambda: policy.act(seen, ("a", 0)), device)
            for _ in range(setting.warm + 4 * setting.steps)
        ]
        note = f"{tokens} tokens; of it text and pixels, on the CPU: {statistics.median(prepared):.1f} ms"
        note += f"; actions differ from the eager ones by {off:.1g} at most" if compiled else ""
        what = f"{name}, {'compiled' if compiled else 'eager'}"
        rows.append(Row("act", what, "ms", calls[setting.warm :], peak_of(device), note))
    return rows
