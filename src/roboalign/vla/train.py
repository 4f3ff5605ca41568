"""Train the head on hidden states of the frozen backbone (paper, section 3.3): stored ones, or if
they would be too large, computed in each step."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from roboalign.actions.normalize import ActionStats, Method
from roboalign.actions.relative import Relative
from roboalign.core.config import Config
from roboalign.core.distributed import leads, rank, wait_for_all, world_size
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.core.progress import Progress, say
from roboalign.core.trackers import record_metrics
from roboalign.episodes.episode import Episode
from roboalign.mllm.load import Mllm
from roboalign.vla.checkpoint import Trained, resume, save
from roboalign.vla.features import (
    FeatureConfig,
    View,
    compute_features,
    describe_features,
    feature_bytes,
)
from roboalign.vla.frames import Frames, batch_frames, make_frames
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape, flow_times
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.in_step import StatesInStep
from roboalign.vla.parallel import loss_module, own_part, sum_over_processes


class HeadTrainConfig(Config):
    """Training of the head. Other settings of the optimizer are GR00T-N1.5's; see
    `make_optimizer`."""

    steps: int = Field(default=2000, ge=1)
    """Optimizer steps (paper: 60,000 on LIBERO, 100,000 on CALVIN, 30,000 on the real robot)."""
    batch_size: int = Field(default=16, ge=1)
    """Frames per step (GR00T: 32)."""
    draws: int = Field(default=4, ge=1, le=65_536)
    """Draws of noise and flow time for each frame; its VLM tokens are encoded once (GR00T: 1)."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Peak learning rate (paper's scale: 1e-4); linear warm-up, then cosine to 0."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the head's matrix products; its weights and the optimizer stay float32."""
    sampling_steps: int = Field(default=4, ge=1, le=10_000)
    """Euler steps from noise to actions, in evaluation and in the policy."""
    eval_every: int = Field(default=500, ge=1)
    """Steps between evaluations on the held-out episodes."""
    eval_frames: int = Field(default=512, ge=1)
    """Maximum held-out frames that are evaluated, evenly spaced."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints. A killed training resumes from the last one."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then evaluated and saved
    (openpi: 0.99); 0: the weights themselves (GR00T)."""
    compile: bool = False
    """Compile the loss with torch.compile: minutes at the start, then faster steps. Results differ
    by rounding and by the draws of dropout."""
    features: FeatureConfig = FeatureConfig()
    """How the hidden states are computed and stored."""
    statistics: Method = "quantiles"
    """Which actions normalize to -1 and 1: quantiles (1% and 99%), min_max, or mean_std (mean minus
    and plus std)."""
    clip: bool = True
    """Clip normalized actions at -1 and 1, as OpenVLA does; openpi does not. No effect on mean_std.
    The state is normalized in the same way."""


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
    relative: Relative | None = None,
) -> dict[str, Any]:
    """Train a head on the frozen `mllm`, save the policy in `out_dir`/policy, and return the ledger
    record.

    Metrics go to `out_dir`/metrics.jsonl. Hidden states go to `feature_dir` (default
    `out_dir`/features), where runs with the same backbone and frames share them; more than
    `config.features.most_gb` are computed in each step instead. With `relative`
    the head learns actions counted from the state, and `action_stats` are theirs. A killed run
    resumes from its last checkpoint and ends with the same weights. With several processes, each
    computes its share of the hidden states and of every batch; the first writes, and all return the
    same record.

    Raises RoboAlignError if there are no episodes, an episode is both trained on and held out,
    actions are invalid, a loss is not finite, or a batch is smaller than the number of processes.
    """
    _check_episodes(episodes, heldout)
    out_dir = Path(out_dir)
    feature_dir = Path(feature_dir or out_dir / "features")
    began = time.monotonic()
    size = feature_bytes(mllm, episodes, view, config.features, augmented=True)
    size += feature_bytes(mllm, heldout, view, config.features)
    stored = config.features.stores(size)
    if leads():
        drawn = config.steps * config.batch_size
        told = describe_features(
            mllm, episodes, heldout, view, config.features, feature_dir, size=size, drawn=drawn
        )
        say(told)
    state_stats = (
        ActionStats.fit(
            np.concatenate([e.state for e in episodes]),
            method=config.statistics,
            clip=config.clip,
        )
        if head_config.proprioception
        else None
    )
    data = [
        make_frames(
            compute_features(
                mllm, group, view, config.features, feature_dir, augmented=group is episodes
            )
            if stored
            else StatesInStep(mllm, group, view, config.features, augmented=group is episodes),
            group,
            action_stats,
            state_stats,
            horizon,
            config.features,
            relative,
        )
        for group in (episodes, heldout)
    ]
    feature_seconds = time.monotonic() - began
    width, state_dim = data[0].store.width, episodes[0].state.shape[1]
    shape = HeadShape(
        vlm_width=width, action_dim=action_stats.dim, state_dim=state_dim, horizon=horizon
    )
    torch.manual_seed(seed)
    head = FlowMatchingHead(head_config, shape).to(mllm.device)
    ledger = fit(head, data[0], data[1], config, out_dir, seed=seed)
    if leads():
        policy = HeadPolicy(
            mllm,
            head.eval(),
            view,
            action_stats,
            state_stats,
            config.sampling_steps,
            relative=relative,
        )
        policy.save(out_dir / "policy")
    wait_for_all()
    return ledger | {"feature_seconds": feature_seconds, "feature_bytes": size if stored else 0}


def fit(
    head: FlowMatchingHead,
    train: Frames,
    heldout: Frames,
    config: HeadTrainConfig,
    out_dir: str | Path,
    *,
    seed: int,
) -> dict[str, Any]:
    """Train `head` in place, with checkpoint and metrics.jsonl in `out_dir`. Returns the ledger
    record.

    The randomness of a step depends only on (seed, step), so a killed run repeats exactly what it
    lost. Several processes share each batch. Their result differs from that of one process by
    rounding, and by dropout, whose masks each process draws for its part of the batch.
    """
    out_dir = Path(out_dir)
    metrics, checkpoint = out_dir / "metrics.jsonl", out_dir / "checkpoint.pt"
    loss_of = loss_module(head, compiled=config.compile)
    trained = Trained(head, make_optimizer(head, config), average_of(head, config))
    settings = _fingerprint(head, train, config, seed)
    start, seconds, losses = resume(checkpoint, metrics, trained, settings)
    began = time.monotonic() - seconds
    with Progress("head", config.steps, start, shown=leads()) as progress:
        for step in range(start, config.steps):
            if isinstance(train.store, StatesInStep):
                decode_ahead(train, train.store, config, step, start, seed)
            losses.append(train_step(loss_of, trained, train, config, step, seed))
            done = step + 1
            progress.advance(note=f"loss {np.mean(losses[-50:]):.4f}")
            if done % config.eval_every == 0 or done == config.steps:
                record = {
                    "step": done,
                    "train_loss": float(np.mean(losses)),
                    "seconds": time.monotonic() - began,
                }
                record |= evaluate_head(trained.result, heldout, config, seed)
                if leads():
                    record_metrics(metrics, record)
                losses = []
            if leads() and (done % config.checkpoint_every == 0 or done == config.steps):
                now = {
                    "step": done,
                    "settings": settings,
                    "seconds": time.monotonic() - began,
                    "losses": losses,
                }
                save(checkpoint, trained, now)
    wait_for_all()
    head.load_state_dict(trained.result.state_dict())
    last = read_jsonl(metrics)[-1]
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
    """Return GR00T-N1.5's optimizer: betas (0.95, 0.999), weight decay 1e-5."""
    return torch.optim.AdamW(
        head.parameters(),
        lr=config.learning_rate,
        betas=(0.95, 0.999),
        weight_decay=1e-5,
        fused=True,
    )


def learning_rate_factor(step: int, config: HeadTrainConfig) -> float:
    """Return the factor of the learning rate: linear from 0 in the warm-up, then a cosine that
    reaches 0 after the last step."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


@torch.no_grad()
def evaluate_head(
    head: FlowMatchingHead, frames: Frames, config: HeadTrainConfig, seed: int
) -> dict[str, float]:
    """Return `heldout_loss`, the flow-matching loss, and `heldout_l1`, the mean absolute error of
    sampled chunks in normalized units.

    Noise and times are the same at every call, so that the numbers of a run are comparable. Several
    processes evaluate a share each, and all return the mean over all frames. Raises RoboAlignError
    if a result is not finite.
    """
    head.eval()
    device = next(head.parameters()).device
    chosen = (
        np.linspace(0, len(frames) - 1, min(len(frames), config.eval_frames))
        .round()
        .astype(np.int64)
    )
    generator = torch.Generator().manual_seed(seed)
    losses = distances = 0.0
    for number, start in enumerate(range(0, len(chosen), config.batch_size)):
        batch = chosen[start : start + config.batch_size]
        noise = torch.randn(len(batch), *frames.actions.shape[1:], generator=generator).to(device)
        t = flow_times(len(batch), generator).to(device)
        if number % world_size() != rank():
            continue
        states, mask, state, actions = frames.batch(batch, device)
        with _autocast(device, config):
            losses += head.loss(states, mask, state, actions, noise=noise, t=t).item() * len(
                actions
            )
            sampled = head.sample(states, mask, state, noise, steps=config.sampling_steps)
        distances += (sampled - actions).abs().mean(dim=(1, 2)).sum().item()
    losses, distances = sum_over_processes([losses, distances])
    result = {"heldout_loss": losses / len(chosen), "heldout_l1": distances / len(chosen)}
    if not all(map(math.isfinite, result.values())):
        raise RoboAlignError(
            f"the head's held-out metrics are not finite: {result}", fix="lower learning_rate"
        )
    return result


def average_of(head: FlowMatchingHead, config: HeadTrainConfig) -> AveragedModel | None:
    """Return the moving average of the head's weights for `config.ema`, or None; it starts from the
    weights after the first step.

    It stores its own weights: 4 more bytes per parameter, on the device and in the checkpoints.
    """
    return (
        AveragedModel(head, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
    )


def train_step(
    loss_of: nn.Module,
    trained: Trained,
    train: Frames,
    config: HeadTrainConfig,
    step: int,
    seed: int,
) -> float:
    """Perform one update and return the loss over the whole batch. Every process draws the noise
    and times of all of it."""
    device = next(loss_of.parameters()).device
    loss_of.train()
    for group in trained.optimizer.param_groups:
        group["lr"] = config.learning_rate * learning_rate_factor(step, config)
    mine = own_part(config.batch_size)
    chosen = batch_frames(len(train), config.batch_size, step, seed, train.copies)
    states, mask, state, actions = train.batch(chosen[mine], device)
    torch.manual_seed(_number(seed, step))
    noise = torch.randn(config.draws * len(chosen), *actions.shape[1:])
    t = flow_times(len(noise))
    if rank():
        torch.manual_seed(
            _number(seed, step, rank())
        )  # dropout masks that differ between processes
    drawn = slice(config.draws * mine.start, config.draws * mine.stop)
    with _autocast(device, config):
        loss = loss_of(
            states, mask, state, actions, noise=noise[drawn].to(device), t=t[drawn].to(device)
        )
    share = len(actions) / len(chosen)
    (value,) = sum_over_processes([share * loss.item()])
    (share * world_size() * loss).backward()
    norm = torch.nn.utils.clip_grad_norm_(trained.head.parameters(), 1.0).item()
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise RoboAlignError(
            f"the loss is {value}, the gradient's norm {norm}, at step {step}",
            where="head training",
            fix="lower learning_rate, and check the features and actions for outliers",
        )
    trained.optimizer.step()
    trained.optimizer.zero_grad()
    if trained.average is not None:
        trained.average.update_parameters(trained.head)
    return value


def decode_ahead(
    train: Frames, store: StatesInStep, config: HeadTrainConfig, step: int, start: int, seed: int
) -> None:
    """Decode the pictures of this process's part of the next steps, if those before are used up."""
    mine = own_part(config.batch_size)
    ahead = store.steps_ahead(mine.stop - mine.start)
    if (step - start) % ahead:
        return
    parts = [
        batch_frames(len(train), config.batch_size, one, seed, train.copies)[mine]
        for one in range(step, min(step + ahead, config.steps))
    ]
    store.decode(np.unique(np.concatenate(parts)))


def _number(*of: int) -> int:
    return int(np.random.SeedSequence(of).generate_state(1)[0])


def _autocast(device: torch.device, config: HeadTrainConfig) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _check_episodes(episodes: Sequence[Episode], heldout: Sequence[Episode]) -> None:
    for name, group in (("training", episodes), ("held-out", heldout)):
        if not group:
            raise RoboAlignError(
                f"there are no {name} episodes", where="head training", fix="collect some"
            )
    shared = {episode.episode_id for episode in episodes} & {
        episode.episode_id for episode in heldout
    }
    if shared:
        raise RoboAlignError(
            f"episode {min(shared)} is both trained on and held out", where="head training"
        )


def _fingerprint(head: FlowMatchingHead, train: Frames, config: HeadTrainConfig, seed: int) -> str:
    """Return what must be the same when a killed run resumes."""
    settings = config.model_dump(mode="json", exclude={"compile"})
    parts = [settings, head.config.model_dump(), head.shape.model_dump(), len(train), seed]
    return json.dumps([*parts, train.actions.double().sum().item()])
