"""Training the head on stored hidden states. The backbone takes no part: it is frozen (paper, section 3.3)."""

import json
import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from roboalign.actions.normalize import ActionStats
from roboalign.config import Config
from roboalign.data.episode import Episode
from roboalign.errors import RoboAlignError
from roboalign.files import append_jsonl, atomic_path, read_jsonl, write_text
from roboalign.mllm.load import Mllm
from roboalign.progress import Progress
from roboalign.vla.features import FeatureConfig, FeatureStore, View, compute_features, feature_bytes
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape, flow_times
from roboalign.vla.policy import Policy


class HeadTrainConfig(Config):
    """Training of the head. The optimiser's other settings are GR00T-N1.5's; see `make_optimizer`."""

    steps: int = Field(default=2000, ge=1)
    """Optimiser steps (paper: 60,000 on LIBERO, 100,000 on CALVIN, 30,000 on the real robot)."""
    batch_size: int = Field(default=16, ge=1)
    """Frames a step (GR00T: 32)."""
    draws: int = Field(default=4, ge=1)
    """Noise and flow time are drawn this many times for each frame; its VLM tokens are encoded once (GR00T: 1)."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate (paper's scale: 1e-4); linear warm-up, then cosine to 0."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the head's matrix products; its weights and the optimiser stay float32."""
    sampling_steps: int = Field(default=4, ge=1)
    """Euler steps from noise to actions, in evaluation and in the policy."""
    eval_every: int = Field(default=500, ge=1)
    """Steps between measurements on the held-out episodes."""
    eval_frames: int = Field(default=512, ge=1)
    """At most so many held-out frames, evenly spaced, are measured."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints from which a killed training goes on."""
    features: FeatureConfig = FeatureConfig()
    """How the hidden states are computed and kept."""


@dataclass(frozen=True)
class Frames:
    """Training data: N frames. `actions` float32 [N, H, A] and `state` float32 [N, S], or None, are normalised."""

    store: FeatureStore
    actions: Tensor
    state: Tensor | None

    def __len__(self) -> int:
        return len(self.actions)

    def batch(self, frames: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Frame numbers [B] -> hidden states [B, L, W], mask [B, L], state [B, S] or None, actions [B, H, A]."""
        states, mask = self.store.gather(frames)
        index = torch.from_numpy(frames)
        state = None if self.state is None else self.state[index].to(device)
        return states.to(device).float(), mask.to(device), state, self.actions[index].to(device)


def train_head(
    mllm: Mllm,
    episodes: Sequence[Episode],
    heldout: Sequence[Episode],
    head_config: HeadConfig,
    config: HeadTrainConfig,
    view: View,
    action_stats: ActionStats,
    out_dir: str | Path,
    *,
    horizon: int,
    seed: int = 0,
    feature_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Train a head on the frozen `mllm` and save the policy in `out_dir`/policy. Returns the ledger record.

    Metrics go to `out_dir`/metrics.jsonl. Hidden states go to `feature_dir` (default `out_dir`/features), where runs
    with the same backbone and frames share them. A killed run goes on from its last checkpoint and ends with the
    same weights. Raises RoboAlignError on no episodes, a shared episode, invalid actions, and a loss that is NaN.
    """
    _check_episodes(episodes, heldout)
    out_dir = Path(out_dir)
    feature_dir = Path(feature_dir or out_dir / "features")
    began = time.monotonic()
    both = [*episodes, *heldout]
    size = feature_bytes(mllm, both, view, config.features)
    print(f"hidden states of {len(both)} episodes: {size / 2**20:.0f} MiB in {feature_dir}", flush=True)
    state_stats = ActionStats.fit(np.concatenate([e.state for e in episodes])) if head_config.proprioception else None
    data = [
        make_frames(compute_features(mllm, group, view, config.features, feature_dir), group, action_stats,
                    state_stats, horizon, config.features.every)
        for group in (episodes, heldout)
    ]  # fmt: skip
    feature_seconds = time.monotonic() - began
    width, state_dim = data[0].store.width, episodes[0].state.shape[1]
    shape = HeadShape(vlm_width=width, action_dim=action_stats.dim, state_dim=state_dim, horizon=horizon)
    torch.manual_seed(seed)
    head = FlowMatchingHead(head_config, shape).to(mllm.device)
    ledger = fit(head, data[0], data[1], config, out_dir, seed=seed)
    policy = Policy(mllm, head.eval(), view, action_stats, state_stats, config.sampling_steps)
    policy.save(out_dir / "policy")
    return ledger | {"feature_seconds": feature_seconds, "feature_bytes": size}


def make_frames(
    store: FeatureStore,
    episodes: Sequence[Episode],
    action_stats: ActionStats,
    state_stats: ActionStats | None,
    horizon: int,
    every: int,
) -> Frames:
    """Normalised action chunks and states beside the hidden states, frame by frame."""
    chunks = np.concatenate([episode.chunks(horizon)[::every] for episode in episodes])
    actions = torch.from_numpy(action_stats.normalize(chunks))
    state = None
    if state_stats is not None:
        state = torch.from_numpy(state_stats.normalize(np.concatenate([e.state[::every] for e in episodes])))
    if len(store) != len(actions):
        raise RoboAlignError(f"{len(store)} stored frames for {len(actions)} frames of the episodes", where="features")
    return Frames(store, actions, state)


def fit(
    head: FlowMatchingHead, train: Frames, heldout: Frames, config: HeadTrainConfig, out_dir: str | Path, *, seed: int
) -> dict[str, Any]:
    """Train `head` in place; checkpoint and metrics.jsonl in `out_dir`. Returns the ledger record.

    All randomness of a step is a function of (seed, step): a run that was killed repeats what it lost.
    """
    out_dir = Path(out_dir)
    device = next(head.parameters()).device
    optimizer = make_optimizer(head, config)
    settings = _fingerprint(head, train, config, seed)
    start, seconds, losses = _resume(out_dir, head, optimizer, settings)
    began = time.monotonic() - seconds
    with Progress("head", config.steps, start) as progress:
        for step in range(start, config.steps):
            losses.append(_train_step(head, optimizer, train, config, step, seed, device))
            done = step + 1
            progress.advance(note=f"loss {np.mean(losses[-50:]):.4f}")
            if done % config.eval_every == 0 or done == config.steps:
                record = {"step": done, "train_loss": float(np.mean(losses)), "seconds": time.monotonic() - began}
                append_jsonl(out_dir / "metrics.jsonl", record | evaluate_head(head, heldout, config, seed))
                losses = []
            if done % config.checkpoint_every == 0 or done == config.steps:
                now = {"step": done, "settings": settings, "seconds": time.monotonic() - began, "losses": losses}
                _save(out_dir, head, optimizer, now)
    last = read_jsonl(out_dir / "metrics.jsonl")[-1]
    return {
        "steps": config.steps,
        "samples": config.steps * config.batch_size,
        "train_frames": len(train),
        "heldout_frames": len(heldout),
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "train_seconds": time.monotonic() - began,
        "train_loss": last["train_loss"],
        "heldout_loss": last["heldout_loss"],
        "heldout_l1": last["heldout_l1"],
    }


def make_optimizer(head: FlowMatchingHead, config: HeadTrainConfig) -> torch.optim.AdamW:
    """GR00T-N1.5's: betas (0.95, 0.999), weight decay 1e-5."""
    return torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, betas=(0.95, 0.999), weight_decay=1e-5, fused=True
    )


def learning_rate_factor(step: int, config: HeadTrainConfig) -> float:
    """Linear from 0 over the warm-up, then a cosine that reaches 0 after the last step."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


def batch_frames(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Frame numbers [batch_size] of one step: shuffled epochs end to end, a function of (seed, step)."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // count
    order = np.concatenate([_permutation(count, epoch, seed) for epoch in range(epochs[0], epochs[-1] + 1)])
    return order[places - epochs[0] * count]


@torch.no_grad()
def evaluate_head(head: FlowMatchingHead, frames: Frames, config: HeadTrainConfig, seed: int) -> dict[str, float]:
    """`heldout_loss`: the flow-matching loss; `heldout_l1`: mean distance of sampled chunks, normalised units.

    Noise and times are the same at every call, so that the numbers of a run are comparable.
    """
    head.eval()
    device = next(head.parameters()).device
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), config.eval_frames)).round().astype(np.int64)
    generator = torch.Generator().manual_seed(seed)
    losses, distances = [], []
    for start in range(0, len(chosen), config.batch_size):
        states, mask, state, actions = frames.batch(chosen[start : start + config.batch_size], device)
        noise = torch.randn(actions.shape, generator=generator).to(device)
        t = flow_times(len(actions), generator).to(device)
        with _autocast(device, config):
            losses.append(head.loss(states, mask, state, actions, noise=noise, t=t).item() * len(actions))
            sampled = head.sample(states, mask, state, noise, steps=config.sampling_steps)
        distances.append((sampled - actions).abs().mean(dim=(1, 2)).sum().item())
    result = {"heldout_loss": sum(losses) / len(chosen), "heldout_l1": sum(distances) / len(chosen)}
    if not all(map(math.isfinite, result.values())):
        raise RoboAlignError(f"the head's held-out metrics are not finite: {result}", fix="lower learning_rate")
    return result


def _train_step(
    head: FlowMatchingHead,
    optimizer: torch.optim.AdamW,
    train: Frames,
    config: HeadTrainConfig,
    step: int,
    seed: int,
    device: torch.device,
) -> float:
    head.train()
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * learning_rate_factor(step, config)
    states, mask, state, actions = train.batch(batch_frames(len(train), config.batch_size, step, seed), device)
    torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
    noise = torch.randn(config.draws * len(actions), *actions.shape[1:]).to(device)
    t = flow_times(len(noise)).to(device)
    with _autocast(device, config):
        loss = head.loss(states, mask, state, actions, noise=noise, t=t)
    value = loss.item()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0).item()
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise RoboAlignError(
            f"the loss is {value}, the gradient's norm {norm}, at step {step}", where="head training",
            fix="lower learning_rate, and check the features and actions for outliers",
        )  # fmt: skip
    optimizer.step()
    optimizer.zero_grad()
    return value


def _autocast(device: torch.device, config: HeadTrainConfig) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


@lru_cache(maxsize=4)
def _permutation(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _check_episodes(episodes: Sequence[Episode], heldout: Sequence[Episode]) -> None:
    for name, group in (("training", episodes), ("held-out", heldout)):
        if not group:
            raise RoboAlignError(f"there are no {name} episodes", where="head training", fix="collect some")
    shared = {episode.episode_id for episode in episodes} & {episode.episode_id for episode in heldout}
    if shared:
        raise RoboAlignError(f"episode {min(shared)} is both trained on and held out", where="head training")


def _fingerprint(head: FlowMatchingHead, train: Frames, config: HeadTrainConfig, seed: int) -> str:
    """What must not change between a killed run and the one that goes on from it."""
    parts = [config.model_dump(), head.config.model_dump(), head.shape.model_dump(), len(train), seed]
    return json.dumps([*parts, train.actions.double().sum().item()])


def _save(
    out_dir: Path,
    head: FlowMatchingHead,
    optimizer: torch.optim.AdamW,
    progress: dict[str, Any],
) -> None:
    """`progress`: step, settings, seconds, and the losses since the last line of metrics."""
    with atomic_path(out_dir / "checkpoint.pt") as temporary:
        torch.save(progress | {"head": head.state_dict(), "optimizer": optimizer.state_dict()}, temporary)


def _resume(
    out_dir: Path, head: FlowMatchingHead, optimizer: torch.optim.AdamW, settings: str
) -> tuple[int, float, list[float]]:
    """Put the last checkpoint into `head` and `optimizer`; its step, seconds and losses. Without one: 0, 0, []."""
    path, metrics = out_dir / "checkpoint.pt", out_dir / "metrics.jsonl"
    fix = f"remove {out_dir} and train again"
    if not path.exists():
        metrics.unlink(missing_ok=True)
        return 0, 0.0, []
    try:
        saved = torch.load(path, weights_only=True, map_location=next(head.parameters()).device)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise RoboAlignError(f"the checkpoint cannot be read ({error})", where=str(path), fix=fix) from None
    if saved["settings"] != settings:
        raise RoboAlignError("the checkpoint is of other settings or data", where=str(path), fix=fix)
    head.load_state_dict(saved["head"])
    optimizer.load_state_dict(saved["optimizer"])
    kept = [record for record in read_jsonl(metrics) if record["step"] <= saved["step"]]
    write_text(metrics, "".join(json.dumps(record) + "\n" for record in kept))
    return saved["step"], saved["seconds"], saved["losses"]
